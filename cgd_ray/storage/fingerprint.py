"""Digests that identify equal work: of tables (fingerprints) and of rows (parents)."""

import hashlib
import json
from typing import Any


def fingerprint(content: dict[str, Any]) -> str:
    """Sixteen hex digits of the canonical JSON of `content`; keys are sorted, so their order does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_digest(text: str, kind: str = "") -> str:
    """Thirty-two hex digits of exactly this text; texts of two kinds never share one."""
    return hashlib.blake2b(text.encode(), digest_size=16, person=kind.encode()).hexdigest()


def parent_digest(*digests: str) -> str:
    """Thirty-two hex digits of the digests of the texts that something was made from, in this order.

    Takes digests, not texts: a result can then be matched to its row without reading any text.
    """
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


def derived_seed(*parts: str | int) -> int:
    """A seed below 2**31 that depends on every part; distinct parts do not collide, as sums like seed + i would."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) & 0x7FFF_FFFF
