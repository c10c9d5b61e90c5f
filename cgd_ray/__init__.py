"""Critique-Guided Distillation (arXiv 2505.11628) of language models on Ray."""
