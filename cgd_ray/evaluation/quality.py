"""Quality of generated rows: counted per shard, in parallel, in constant memory."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial

from cgd_ray.grading.answers import gold_of
from cgd_ray.grading.grade import VERSION, grade
from cgd_ray.grading.overlap import copy_rate
from cgd_ray.runtime.parallel import parallel_map
from cgd_ray.stages.rows import Join, JoinedRow, Shard
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import JsonDict

_FORMAT = 2  # version of the summary file


@dataclass
class _Share:
    """Sum of amounts over rows; `value` is their mean."""

    rows: int = 0
    amount: float = 0.0

    def add(self, amount: float, rows: int = 1) -> None:
        self.rows += rows
        self.amount += amount

    @property
    def value(self) -> float | None:
        return self.amount / self.rows if self.rows else None


@dataclass
class _Quality:
    """Counts of generated rows; the counts of two shards add up."""

    right: dict[str, _Share] = field(default_factory=lambda: defaultdict(_Share))
    """By stage."""
    verdicts: _Share = field(default_factory=_Share)
    copied: dict[str, _Share] = field(default_factory=lambda: defaultdict(_Share))
    """By source."""
    flips: Counter[str] = field(default_factory=Counter)

    def count(self, row: JoinedRow) -> None:
        marks = _marks(row)
        for name in ("draft", "answer", "refine"):
            if name in row.results:
                self.right[name].add(marks.get(name, False), rows=name in marks)
        if "refine" in marks:
            kinds = {(False, True): "fixed", (True, False): "broken"}
            self.flips.update(["rows", kinds.get((marks["draft"], marks["refine"]), "same")])
        if verdict := (row.results["critique"] or {}).get("verdict"):
            self.verdicts.add((verdict == "right") == marks["draft"])
        for source in ("critique", "answer"):
            if source in row.results:
                texts = row.texts[source], row.texts["refine"]
                both = texts[0] is not None and texts[1] is not None
                self.copied[source].add(copy_rate(*texts) if both else 0.0, rows=both)

    def add(self, other: "_Quality") -> None:
        for mine, theirs in ((self.right, other.right), (self.copied, other.copied)):
            for name, share in theirs.items():
                mine[name].add(share.amount, share.rows)
        self.verdicts.add(other.verdicts.amount, other.verdicts.rows)
        self.flips.update(other.flips)

    def summary(self) -> "GeneratedQuality":
        return GeneratedQuality(
            accuracy={name: _summed(share) for name, share in self.right.items()},
            verdicts=_summed(self.verdicts),
            flips=Flips(self.flips["rows"], self.flips["fixed"], self.flips["broken"]),
            copy_rate={f"{source} to refinement": share.value for source, share in self.copied.items()},
        )


@dataclass(frozen=True)
class GradedShare:
    """Number of graded rows, and the share that is right (None without rows)."""

    rows: int
    accuracy: float | None


@dataclass(frozen=True)
class Flips:
    """Rows whose draft and refinement were both graded, and those that the refinement fixed or broke."""

    rows: int
    fixed: int
    broken: int


@dataclass(frozen=True)
class GeneratedQuality:
    """Quality of the generated rows that can be graded."""

    accuracy: dict[str, GradedShare]
    """Accuracy of drafts, answers and refinements, by stage."""
    verdicts: GradedShare
    """Accuracy of the critic's verdicts on drafts."""
    flips: Flips
    copy_rate: dict[str, float | None]
    """Share of the refinement's words that occur in the source, by `SOURCE to refinement`."""


def generated_quality(join: Join) -> GeneratedQuality:
    """Measure the accuracy of drafts, answers, refinements and verdicts, flips from draft to refinement, and copying.

    Counts only rows whose reference states an answer and whose stage succeeded; `rows` is their number. The result for
    the same rows is cached in the store.
    """
    content = {"version": VERSION, "format": _FORMAT, "rows": join.whole_digest()}
    name, store = f"tables/quality/{fingerprint(content)}/quality.json", join.prompts.store
    if store.exists(name):
        return _from_json(json.loads(store.read(name)))
    whole = _Quality()
    for shard in parallel_map(partial(_shard_quality, join), join.shards()):
        whole.add(shard)
    summary = whole.summary()
    store.write(name, json.dumps(asdict(summary), indent=1).encode())
    return summary


def _from_json(content: JsonDict) -> GeneratedQuality:
    return GeneratedQuality(
        {name: GradedShare(**share) for name, share in content["accuracy"].items()},
        GradedShare(**content["verdicts"]),
        Flips(**content["flips"]),
        content["copy_rate"],
    )


def _shard_quality(join: Join, shard: Shard) -> _Quality:
    return _counted(join.rows(shard))


def _counted(rows: Iterable[JoinedRow]) -> _Quality:
    quality = _Quality()
    for row in rows:
        if row.texts["reference"] and gold_of(row.texts["reference"]):
            quality.count(row)
    return quality


def _marks(row: JoinedRow) -> dict[str, bool]:
    texts = {name: row.texts[name] for name in ("draft", "answer", "refine") if row.texts[name] is not None}
    return {name: grade(text, row.texts["reference"]).correct for name, text in texts.items()}


def _summed(share: _Share) -> GradedShare:
    return GradedShare(share.rows, share.value)
