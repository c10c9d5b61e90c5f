"""Evaluation: the sets of questions that every student answers, and how answers are decoded."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.benchmarks import BENCHMARKS
from cgd_ray.config.data import DataCommon, HfData, JsonlData, ParquetData

PositiveInt = Annotated[int, Field(ge=1)]
BASE = "base"
"""Name of the untrained student."""
HELDOUT = "heldout"
"""Name of the set that the held-out prompts of `data` make."""

_NO_HOLDOUT = DataCommon.model_fields["holdout"].default
_OF_THE_HUB = {"dataset", "subset", "split", "revision"}


class Decoding(Section):
    """How answers are decoded."""

    max_tokens: PositiveInt = 1024
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class EvaluationSet(Section):
    """One set of questions. A name alone is a set, too: `heldout`, or a benchmark."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """`heldout` (the held-out prompts of `data`), a benchmark (`gsm8k`, `math-500`, ...), or any name beside `data`."""

    data: Annotated[JsonlData | ParquetData | HfData, Field(discriminator="type")] | None = None
    """Where the questions come from. A benchmark's name gives the columns and the template: `{type: jsonl, path: FILE}`
    reads a local copy with the hub's columns."""

    role: Literal["dev", "report"] = "report"
    """Choose settings on `dev` sets; report numbers of `report` sets."""

    limit: PositiveInt | None = None
    """At most this many questions, smallest hash first; null takes `evaluation.limit`."""

    samples: PositiveInt = 1
    """Answers per question; above 1, accuracy is their mean, and pass@k is reported."""

    max_tokens: PositiveInt | None = None
    """Null takes `evaluation.max_tokens`; likewise the next two."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_benchmark(cls, given: object) -> object:
        """Fill in what the name says of the data."""
        tree = {"name": given} if isinstance(given, str) else given
        if not isinstance(tree, dict) or tree.get("name") not in BENCHMARKS:
            return tree
        known, own = BENCHMARKS[tree["name"]], tree.get("data") or {}
        if isinstance(own, dict):
            is_local = own.get("type", known["type"]) != known["type"]
            kept = {key: value for key, value in known.items() if not (is_local and key in _OF_THE_HUB)}
            return {**tree, "data": kept | own}
        return tree

    @model_validator(mode="after")
    def _data_is_there_and_whole(self) -> Self:
        if (self.name == HELDOUT) != (self.data is None):
            known = ", ".join([HELDOUT, *BENCHMARKS])
            raise ValueError(f"data of set {self.name}. Fix: give data (not for {HELDOUT}), or name one of {known}")
        if self.data and (self.data.limit is not None or self.data.holdout != _NO_HOLDOUT):
            raise ValueError(f"data of set {self.name}: limit and holdout do not apply. Fix: set the set's own limit")
        if self.data and self.data.reference_column is None:
            raise ValueError(f"data of set {self.name}: answers need a reference. Fix: set reference_column")
        return self


class Gate(Section):
    """A condition on the trained student, without which it is not served."""

    set: str
    """Name of the set of questions."""
    against: str = BASE
    """`base`, or the name of another run of this root: its trained student."""
    min_gain: Annotated[float, Field(ge=-1, le=1)] | None = None
    """The lower end of the difference's interval must reach this: 0 for "better", 0.02 for "better by two points"."""
    max_drift: Annotated[float, Field(gt=0, le=1)] | None = None
    """The lower end must be above minus this: 0.02 for "no more than two points are lost" (non-inferiority)."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.min_gain is None and self.max_drift is None:
            raise ValueError("neither min_gain nor max_drift. Fix: set one of them")
        return self


class EvaluationSection(Decoding):
    """Base and trained student on the same questions, with the bare prompt, through the same engine."""

    enabled: bool = True
    sets: Annotated[list[EvaluationSet], Field(min_length=1)] = [EvaluationSet(name=HELDOUT)]
    """Sets of questions: names (`heldout`, `gsm8k`, `math-500`, ...) or sections. The first one leads the report."""
    limit: PositiveInt | None = 5000
    """At most this many questions of a set, smallest hash first; `null` asks all. 5,000 (the size
    of MATH's test set) give an accuracy to 1.4 points."""
    gates: list[Gate] = []
    """Conditions on the trained student; `cgd serve` refuses one that fails, unless `serving.force` is set."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: PositiveInt = 10_000
    """Bootstrap resamples of the paired difference."""

    @field_validator("sets")
    @classmethod
    def _names_differ(cls, sets: list[EvaluationSet]) -> list[EvaluationSet]:
        names = [one.name for one in sets]
        if len(set(names)) < len(names):
            raise ValueError("two sets have one name. Fix: name each differently")
        return sets

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        for one in self.sets:
            if one.samples > 1 and self.decoding(one).temperature == 0:
                raise ValueError(
                    f"set {one.name}: samples above 1 with temperature 0, which are all the same. Fix: set temperature "
                    "above 0"
                )
        return self

    @model_validator(mode="after")
    def _gates_have_sets(self) -> Self:
        names = [one.name for one in self.sets]
        for gate in self.gates:
            if gate.set not in names:
                raise ValueError(f"gates: no set {gate.set}. Fix: name one of {', '.join(names)}")
        return self

    def decoding(self, one: EvaluationSet) -> Decoding:
        """The set's own decoding, completed by the section's."""
        own = {name: getattr(one, name) for name in Decoding.model_fields}
        return Decoding(**{name: getattr(self, name) if value is None else value for name, value in own.items()})

    @property
    def asks_heldout(self) -> bool:
        """Whether held-out prompts are evaluated."""
        return self.enabled and any(one.name == HELDOUT for one in self.sets)
