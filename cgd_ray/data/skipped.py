"""Rows that cannot be used: left out, counted by reason, and too many of them refused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cgd_ray.errors import ConfigError
from cgd_ray.storage.runs import JsonDict

_SHOWN = 200
"""Skipped rows that are kept for people to look at."""


class RowError(ConfigError):
    """One row that cannot be used; others may be."""

    def __init__(self, text: str, source: str = "", reason: str = "") -> None:
        """An error.

        Args:
            text: one line that names the row and the mend.
            source: FILE:ROW.
            reason: two or three words, under which rows are counted.
        """
        super().__init__(text)
        self.source = source
        self.reason = reason


OnSkip = Callable[[RowError], None]
"""Told of each row that cannot be used; raises it where none may be skipped."""


def refuse(error: RowError) -> None:
    """Skip none."""
    raise error


@dataclass(frozen=True)
class _Shown:
    source: str
    reason: str
    text: str


class SkippedRows:
    """Counts rows that cannot be used."""

    def __init__(self) -> None:
        self._reasons = Counter[str]()
        self._shown: list[_Shown] = []

    def __call__(self, error: RowError) -> None:
        """Count one."""
        self._reasons[error.reason] += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(_Shown(error.source, error.reason, str(error)))

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._reasons.total()

    def require_few(self, read: int, most: float) -> None:
        """Refuse a source of which too large a share cannot be used; see `require_few`."""
        require_few(self.document(), self.count, read, most)

    def document(self) -> JsonDict:
        """What is kept of them."""
        return {
            "reasons": dict(self._reasons.most_common()),
            "rows": [{"source": row.source, "reason": row.reason, "text": row.text} for row in self._shown],
        }


def require_few(skipped: JsonDict, count: int, read: int, most: float) -> None:
    """Refuse a source of which too large a share cannot be used.

    Args:
        skipped: a document of `SkippedRows`.
        count: rows that were skipped.
        read: rows of the source that were read, these included.
        most: the largest share.

    Raises:
        ConfigError: more are skipped; the text is that of the first one.
    """
    if count > most * read:
        reasons = ", ".join(f"{number} {reason}" for reason, number in skipped["reasons"].items())
        others = f"; {count} of {read} rows cannot be used, more than data.max_skipped_fraction {most:g} allows"
        raise ConfigError(f"{skipped['rows'][0]['text']}{f'{others}: {reasons}' if count > 1 else ''}")
