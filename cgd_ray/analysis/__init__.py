"""The method's own measurements: how far a critique reduces the uncertainty of the refinement."""
