"""Rows that cannot be used: skip them, count them by reason, and refuse too many."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cgd_ray.errors import ConfigError
from cgd_ray.storage.runs import JsonDict

_SHOWN = 200
"""Skipped rows that are stored for inspection."""


class RowError(ConfigError):
    """One row that cannot be used; other rows may be usable."""

    def __init__(self, text: str, source: str = "", reason: str = "") -> None:
        """Create an error.

        Args:
            text: one line that names the row and the fix.
            source: FILE:ROW.
            reason: two or three words, under which rows are counted.
        """
        super().__init__(text)
        self.source = source
        self.reason = reason


OnSkip = Callable[[RowError], None]
"""Called with each row that cannot be used; raises the error if no row may be skipped."""


def refuse(error: RowError) -> None:
    """Raise the error: no row may be skipped."""
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
        """Count one row."""
        self._reasons[error.reason] += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(_Shown(error.source, error.reason, str(error)))

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return self._reasons.total()

    def require_few(self, read: int, most: float) -> None:
        """Refuse a source with too large a share of unusable rows; see `require_few`."""
        require_few(self.document(), self.count, read, most)

    def document(self) -> JsonDict:
        """The stored document of the skipped rows."""
        return {
            "reasons": dict(self._reasons.most_common()),
            "rows": [{"source": row.source, "reason": row.reason, "text": row.text} for row in self._shown],
        }


def require_few(skipped: JsonDict, count: int, read: int, most: float) -> None:
    """Refuse a source with too large a share of unusable rows.

    Args:
        skipped: a document of `SkippedRows`.
        count: number of skipped rows.
        read: rows read from the source, skipped ones included.
        most: the largest share that may be skipped.

    Raises:
        ConfigError: the share is larger; the text is that of the first skipped row.
    """
    if count > most * read:
        reasons = ", ".join(f"{number} {reason}" for reason, number in skipped["reasons"].items())
        others = f"; {count} of {read} rows cannot be used, more than data.max_skipped_fraction {most:g} allows"
        raise ConfigError(f"{skipped['rows'][0]['text']}{f'{others}: {reasons}' if count > 1 else ''}")
