"""Who a prompt is: an id that does not depend on its file, row or white space."""

import hashlib
import unicodedata


def prompt_id(prompt: str) -> str:
    """Thirty-two hex digits of the prompt in NFC with white space folded (case kept).

    Two prompts with the same id are duplicates: they are merged before anything is generated.
    """
    folded = " ".join(unicodedata.normalize("NFC", prompt).split())
    return hashlib.blake2b(folded.encode(), digest_size=16).hexdigest()


def holdout_position(identity: str) -> float:
    """Where the prompt falls in [0, 1): uniform, and the same in every run and every source."""
    return int.from_bytes(hashlib.blake2b(bytes.fromhex(identity), digest_size=8, person=b"holdout").digest()) / 2**64
