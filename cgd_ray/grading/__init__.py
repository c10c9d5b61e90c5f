"""Answer checking."""
