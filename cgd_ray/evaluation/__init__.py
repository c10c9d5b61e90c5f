"""Comparison of base and trained student, and the quality of the generated rows."""
