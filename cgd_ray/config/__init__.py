"""The recipe: pydantic models of every section, and the loader. Imports neither ray nor torch."""
