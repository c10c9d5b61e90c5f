"""Limit on how far reading runs ahead of the engines."""


class ReadAheadLimit:
    """Allows a shard to be read while fewer than `room` rows are in the stream: read, but not through all engines.

    Ray Data bounds the blocks between operators by the bytes that the object stores of the whole cluster could take.
    But blocks under 100 KB, as ours are, wait in the memory of the one process that runs its executor. There, 10
    million prompts of 2 KB took 20 GB.

    Limits whole shards, since a reader's rows leave it only when it has read all of its input. A granted shard stays
    granted: if a node's blocks are lost, Ray reads them again, and the engines wait for it.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._granted: set[int] = set()
        self._rows = 0

    def may_read(self, shard: int, rows: int) -> bool:
        """Whether a shard with `rows` rows may enter the stream."""
        if shard in self._granted:
            return True
        if self._rows >= self._room:
            return False
        self._granted.add(shard)
        self._rows += rows
        return True

    def leave(self, rows: int) -> None:
        """Record that `rows` rows have left the stream."""
        self._rows -= rows
