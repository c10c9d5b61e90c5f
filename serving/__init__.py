"""The student behind an OpenAI-compatible HTTP endpoint: Ray Serve LLM around vLLM."""
