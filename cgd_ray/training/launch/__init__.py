"""Training on Ray Train or under torchrun."""
