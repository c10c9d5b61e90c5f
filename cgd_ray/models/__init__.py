"""Models by name: identity, download and conversion."""
