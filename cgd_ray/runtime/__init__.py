"""Processes: the Ray session, children that must not survive, logs."""
