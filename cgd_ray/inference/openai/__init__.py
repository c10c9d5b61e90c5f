"""An OpenAI-compatible HTTP endpoint."""
