"""How far this process is with bringing models to its node, for whoever waits for it."""

import threading
from typing import NamedTuple


class Transfer(NamedTuple):
    """Bytes of models, of all that this process fetched or fetches."""

    done: int
    total: int
    """As far as it is known: a hub names a file's size when it begins with it."""


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # hubs are read by several threads
        self.transfer = Transfer(0, 0)

    def add(self, done: int, total: int) -> None:
        with self._lock:
            self.transfer = Transfer(self.transfer.done + done, self.transfer.total + total)


_COUNT = _Count()


def expect(size: int) -> None:
    """So many bytes will be fetched."""
    _COUNT.add(0, size)


def arrived(size: int) -> None:
    """So many bytes are on this node's disk."""
    _COUNT.add(size, 0)


def so_far() -> Transfer:
    """What was fetched up to now."""
    return _COUNT.transfer
