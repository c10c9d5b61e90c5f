"""Paths, file systems, tables, fingerprints and models: the only code that decides where files are kept."""
