"""Prompt sources and the prompts table."""
