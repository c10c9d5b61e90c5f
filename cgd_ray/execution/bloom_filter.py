"""Which of many things came before, in little memory."""

import hashlib
import struct


class BloomFilter:
    """Whether something was seen before, in the memory of 64 MiB for any number of things.

    A Bloom filter: of five million things less than one in ten thousand new ones is taken for an old one.
    """

    _BITS = 2**29
    _PLACES = 4

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS // 8)  # the system gives pages as they are written to

    def add(self, thing: tuple[str, ...]) -> bool:
        """Take it in; whether it is new."""
        new = False
        # Not hash(): of tuples that begin differently it gives the same low bits together, so four places were one.
        digest = hashlib.blake2b("\0".join(thing).encode(), digest_size=4 * self._PLACES).digest()
        for place in struct.unpack(f"{self._PLACES}I", digest):
            byte, bit = divmod(place % self._BITS, 8)
            new |= not self._bits[byte] >> bit & 1
            self._bits[byte] |= 1 << bit
        return new
