"""Pools of engine actors on Ray Data: the driver, the coordinator, and what happens when an engine dies."""
