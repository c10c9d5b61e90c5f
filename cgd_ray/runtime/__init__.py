"""Processes: the Ray session, child processes that must end with their owner, logs."""
