"""The phases of a run in their order, methods side by side, and what is checked before."""
