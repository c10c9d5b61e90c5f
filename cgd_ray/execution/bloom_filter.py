"""Detect repeated items in little memory."""

import hashlib
import struct


class BloomFilter:
    """Detects whether an item was added before, in 64 MiB of memory for any number of items.

    A Bloom filter: with five million items, fewer than one in ten thousand new ones are taken for old ones.
    """

    _BITS = 2**29
    _PLACES = 4

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS // 8)  # the system allocates pages as they are written

    def add(self, thing: tuple[str, ...]) -> bool:
        """Add an item; return whether it is new."""
        new = False
        # Not hash(): tuples that differ only at the start collide in their low bits together: four places act as one.
        digest = hashlib.blake2b("\0".join(thing).encode(), digest_size=4 * self._PLACES).digest()
        for place in struct.unpack(f"{self._PLACES}I", digest):
            byte, bit = divmod(place % self._BITS, 8)
            new |= not self._bits[byte] >> bit & 1
            self._bits[byte] |= 1 << bit
        return new
