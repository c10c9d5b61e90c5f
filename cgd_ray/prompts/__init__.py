"""The Jinja templates of critique, refinement and training context."""
