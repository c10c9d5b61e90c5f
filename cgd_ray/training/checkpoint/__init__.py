"""Checkpoints, and the exported student."""
