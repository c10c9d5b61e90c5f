"""Names that libraries do not promise to keep, one module per library; tests/unit/compat names each at an upgrade."""
