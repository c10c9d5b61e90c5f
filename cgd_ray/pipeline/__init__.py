"""Phases of a run in order, comparison of methods, and checks before the start."""
