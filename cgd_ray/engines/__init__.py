"""Ways to complete prompts."""
