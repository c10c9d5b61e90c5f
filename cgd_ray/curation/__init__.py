"""Which generated rows become training examples."""
