"""Digests that decide what is the same work: of tables (fingerprints) and of rows (parents)."""

import hashlib
import json
import struct
from typing import Any


def fingerprint(content: dict[str, Any]) -> str:
    """Sixteen hex digits of the canonical JSON of `content`; keys are sorted, so their order does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parent_digest(*texts: str) -> str:
    """Thirty-two hex digits of exactly these texts, in this order.

    Each text goes in behind its length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode()
        digest.update(struct.pack("<Q", len(raw)))
        digest.update(raw)
    return digest.hexdigest()


def derived_seed(*parts: str | int) -> int:
    """A seed below 2**31 that depends on every part; distinct parts do not collide by addition as seed + i would."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) & 0x7FFF_FFFF
