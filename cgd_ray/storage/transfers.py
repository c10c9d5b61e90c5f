"""Progress of this process in fetching models to its node, for display while a command waits."""

import threading
from typing import NamedTuple


class Transfer(NamedTuple):
    """Bytes of all models that this process has fetched or is fetching."""

    done: int
    total: int
    """Total known so far: a hub gives the size of a file when its download begins."""


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # several threads download from hubs
        self.transfer = Transfer(0, 0)

    def add(self, done: int, total: int) -> None:
        with self._lock:
            self.transfer = Transfer(self.transfer.done + done, self.transfer.total + total)


_COUNT = _Count()


def expect(size: int) -> None:
    """Add `size` bytes to the total to fetch."""
    _COUNT.add(0, size)


def arrived(size: int) -> None:
    """Add `size` bytes that are now on this node's disk."""
    _COUNT.add(size, 0)


def so_far() -> Transfer:
    """The progress up to now."""
    return _COUNT.transfer
