"""Estimate the cost of a run: tokens, hours, GPU-hours, memory and money (`cgd plan`)."""
