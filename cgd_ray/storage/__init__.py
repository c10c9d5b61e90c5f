"""Paths, file systems, tables, fingerprints and models: the only code that knows where things lie."""
