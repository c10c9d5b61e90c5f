"""How far reading runs ahead of the engines."""


class ReadAheadLimit:
    """A shard may be read while fewer rows than there is room for are in the stream: read, and not through all engines.

    Ray Data bounds what waits between operators by the bytes that the object stores of the whole cluster could take.
    But blocks under 100 KB, as ours are, wait in the memory of the one process that runs its executor: 10 million
    prompts of 2 KB were 20 GB there.

    Whole shards: a reader's rows leave it only when it has read all of its input. What was granted once stays so:
    where a node's blocks are lost, Ray reads them again, and the engines wait for it.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._granted: set[int] = set()
        self._rows = 0

    def may_read(self, shard: int, rows: int) -> bool:
        """Whether a shard's rows, so many of them, may come into the stream."""
        if shard in self._granted:
            return True
        if self._rows >= self._room:
            return False
        self._granted.add(shard)
        self._rows += rows
        return True

    def leave(self, rows: int) -> None:
        """So many rows have left the stream."""
        self._rows -= rows
