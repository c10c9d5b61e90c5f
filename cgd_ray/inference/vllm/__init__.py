"""vLLM on the cluster's own devices."""
