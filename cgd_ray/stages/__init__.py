"""Stages as data, and the rows that walk through them."""
