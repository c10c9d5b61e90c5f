"""Base against trained student, and the quality of the generated rows."""
