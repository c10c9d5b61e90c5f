"""The trained student behind an OpenAI-compatible endpoint (Ray Serve LLM)."""
