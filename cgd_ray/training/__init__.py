"""From curated rows to a trained student."""
