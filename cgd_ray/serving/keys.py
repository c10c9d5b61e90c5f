"""Keys of the served student, held only as SHA-256 digests; a key file is read again when it changes."""

import hashlib
import hmac
import platform
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from cgd_ray.errors import ConfigError

log = structlog.get_logger(__name__)

_PREFIX = "sha256:"
_LOOK_SECONDS = 1.0
_DIGITS = 64


def new_key() -> str:
    """Return a random key that cannot be guessed."""
    return f"sk-{secrets.token_urlsafe(32)}"


def digest_of(key: str | bytes) -> str:
    """Return the digest that is kept of a key; keys are random, so they need no salt."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def read_keys(text: str, name: str) -> frozenset[str]:
    """Return the digests of the keys in a text: one per line, the key itself or `sha256:` with its digest.

    Blank lines, and those that begin with `#`, are ignored.

    Raises:
        ConfigError: a line is neither, or there is no key; shows `name`, the source of the text, but no key.
    """
    digests = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not (key := line.strip()) or key.startswith("#"):
            continue
        digest = key.removeprefix(_PREFIX).lower() if key.startswith(_PREFIX) else digest_of(key)
        if any(char.isspace() for char in key) or len(digest) != _DIGITS or set(digest) - set("0123456789abcdef"):
            raise ConfigError(f"{name}: line {number} is no key. Fix: one key a line, or {_PREFIX} and its digest")
        digests.add(digest)
    if not digests:
        raise ConfigError(f"{name}: holds no key. Fix: one key a line")
    return frozenset(digests)


class Keys:
    """The keys that are currently valid: given ones, and those of a file.

    A file that cannot be read has no keys: deleting it revokes all of its keys.
    """

    def __init__(self, digests: Iterable[str], file: str | None) -> None:
        """Hold the digests, and read the file.

        Args:
            digests: digests of keys that stay valid.
            file: path of a file with further keys.

        Raises:
            ConfigError: the file cannot be read now.
        """
        self._given = frozenset(digests)
        self._file = Path(file) if file else None
        self._seen: tuple[int, ...] = ()
        self._of_file: frozenset[str] = frozenset()
        self._next_look = 0.0
        if self._file is not None:
            self._read(self._file)

    def are_good(self, key: bytes) -> bool:
        """Whether the key is valid, in a time that does not reveal how close it is."""
        digest = digest_of(key)
        return sum(hmac.compare_digest(digest, known) for known in self._given | self._now()) > 0

    def _now(self) -> frozenset[str]:
        if self._file is None or time.monotonic() < self._next_look:
            return self._of_file
        self._next_look = time.monotonic() + _LOOK_SECONDS
        try:
            self._read(self._file)
        except ConfigError as error:
            if self._of_file:
                log.warning("the file holds no valid key any more", error=str(error))
            self._of_file, self._seen = frozenset(), ()
        return self._of_file

    def _read(self, file: Path) -> None:
        try:
            about = file.stat()  # of a link's target: Kubernetes secrets are links
            seen = (about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino)
            if seen != self._seen:
                self._of_file = read_keys(file.read_text(encoding="utf-8-sig"), f"keys_file {file}")
                self._seen = seen
                log.info("keys are read", file=str(file), keys=len(self._of_file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys_file {file}: cannot be read on {platform.node()}: {error}") from error
