"""Identity of a prompt: an id that does not depend on its file, its row, or its white space."""

import hashlib
import json
import unicodedata

from cgd_ray.grading.normal import INVISIBLE
from cgd_ray.prompts.conversation import History, with_history

_UNSEEN = {"Cc", "Cf", "Zl", "Zp", "Zs"}
_UNSEEN_LETTERS = set("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}
"""Fillers, the empty Braille pattern, and selectors of variants, which Unicode counts as letters, symbols or marks."""
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def prompt_id(prompt: str, history: History = ()) -> str:
    """Thirty-two hex digits of the prompt and the turns before it, by their canonical forms.

    Two prompts with the same id are duplicates: they are merged before anything is generated.
    """
    if not history:
        return hashlib.blake2b(canonical(prompt).encode(), digest_size=16).hexdigest()
    turns = json.dumps([[turn.role, canonical(turn.content)] for turn in with_history(prompt, history)])
    # A prompt alone never has the id of a conversation, whatever its text.
    return hashlib.blake2b(turns.encode(), digest_size=16, person=b"conversation").hexdigest()


def canonical(prompt: str) -> str:
    """The prompt in NFC, without invisible characters, full-width forms as ordinary ones, white space folded.

    Keeps case, and white space at the beginning of lines if a line is indented: both matter in code. Prompts that
    differ in nothing else are the same question, which must not be both trained on and held out.
    """
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", prompt)).translate(_FULL_WIDTH)
    lines = [line for line in text.splitlines() if line.strip()]
    if not any(line[0].isspace() for line in lines[1:]):
        return " ".join(text.split())
    return "\n".join(_indentation(line) + " ".join(line.split()) for line in lines)


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: blanks, control characters and characters without width."""
    return all(unicodedata.category(character) in _UNSEEN or character in _UNSEEN_LETTERS for character in text)


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def holdout_position(identity: str) -> float:
    """Position of the prompt in [0, 1): uniform, and the same in every run and every source."""
    return int.from_bytes(hashlib.blake2b(bytes.fromhex(identity), digest_size=8, person=b"holdout").digest()) / 2**64
