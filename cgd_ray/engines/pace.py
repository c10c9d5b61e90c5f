"""How far reading runs ahead of the engines."""


class Pace:
    """So many rows are in the stream at a time, from their reading to the end of the last engine's work on them.

    Ray Data bounds what waits between operators by the bytes that the object stores of the whole cluster could take.
    But blocks under 100 KB, as ours are, wait in the memory of the one process that runs its executor: 10 million
    prompts of 2 KB were 20 GB there.

    What was granted once stays so: where a node's blocks are lost, Ray reads them again, and the engines wait for it.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._read: dict[int, int] = {}
        self._rows = 0

    def may_read(self, shard: int, rows: int) -> bool:
        """Whether so many rows of a shard, counted from its beginning, may be in the stream or have left it."""
        granted = self._read.get(shard, 0)
        if rows <= granted:
            return True
        if self._rows >= self._room:
            return False
        self._read[shard] = rows
        self._rows += rows - granted
        return True

    def leave(self, rows: int) -> None:
        """So many rows have left the stream."""
        self._rows -= rows
