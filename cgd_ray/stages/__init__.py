"""Stages as data, and the rows that pass through them."""
