"""Output for the user: outcome, status and comparison of runs."""
