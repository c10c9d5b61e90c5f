"""Names without a stability guarantee, one module per library; tests/unit/compat reports each that an upgrade drops."""
