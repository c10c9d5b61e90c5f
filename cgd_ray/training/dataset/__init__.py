"""Curated examples as token ids, and how rows are packed into passes."""
