"""Backends that complete conversations: vLLM, an OpenAI-compatible endpoint, a scripted one for tests."""
