"""Outcome of a run: the result and the cost of each phase."""

from dataclasses import asdict, dataclass, field, replace
from typing import Generic, TypeVar

from cgd_ray.evaluation.gates import GateResult
from cgd_ray.evaluation.quality import GeneratedQuality
from cgd_ray.evaluation.scores import Scores
from cgd_ray.evaluation.statistics import PairedDifference
from cgd_ray.storage.fingerprint import fingerprint
from cgd_ray.storage.runs import JsonDict, Run
from cgd_ray.training.launch.training_run import TrainingResult

ResultT = TypeVar("ResultT")
Figures = dict[str, float]
"""Counts, tokens and seconds of one stage."""


@dataclass(frozen=True)
class PhaseCost:
    """Cost of a phase."""

    seconds: float
    reused: bool
    """Whether the phase found all its work done."""
    spent: dict[str, Figures] = field(default_factory=dict)
    """Figures of what was generated, by stage (generation) or by student (evaluation)."""
    execution: str | None = None
    """How the two engines shared the cluster."""


@dataclass(frozen=True)
class Phase(Generic[ResultT]):
    """One finished phase."""

    result: ResultT
    cost: PhaseCost

    def recorded(self, run: Run, name: str, settings: JsonDict) -> "Phase[ResultT]":
        """Write the phase to `NAME.json` of the run; returns it as written.

        If this invocation reused all or part of the work, the recorded cost of that part under the same settings is
        kept.
        """
        digest, cost = fingerprint(settings), self.cost
        earlier = run.read_json(f"{name}.json")
        if earlier and earlier.get("settings") == digest and "cost" in earlier:
            before = PhaseCost(**earlier["cost"])
            cost = before if cost.reused else replace(cost, spent=before.spent | cost.spent)
        kept = replace(self, cost=cost)
        run.write_json(f"{name}.json", asdict(kept) | {"settings": digest})
        return kept


@dataclass(frozen=True)
class PromptCounts:
    """Counts of the source's rows."""

    train: int
    heldout: int
    duplicates: int
    skipped: int


@dataclass(frozen=True)
class GenerationSummary:
    """State of the generated tables."""

    stages: dict[str, dict[str, int]]
    """Rows by stage and state."""
    critique_reference: str
    """What the critic was shown beside the draft (`generation.critique.reference`)."""


@dataclass(frozen=True)
class CurationSummary:
    """Counts of kept and dropped rows."""

    kept: int
    dropped: dict[str, int]
    """Rows by the stage at fault and the reason."""


@dataclass(frozen=True)
class TrainingSummary:
    """The trained student."""

    method: str
    student: TrainingResult


@dataclass(frozen=True)
class SetSummary:
    """Base and trained student on one set of questions."""

    role: str
    base: Scores
    trained: Scores | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class EvaluationSummary:
    """Base and trained student on all sets of questions, and the quality of the generated rows."""

    sets: dict[str, SetSummary]
    """By name, in the recipe's order."""
    generated: GeneratedQuality
    gates: list[GateResult] = field(default_factory=list)

    @property
    def first(self) -> SetSummary:
        """The set that leads the report."""
        return next(iter(self.sets.values()))


@dataclass(frozen=True)
class Outcome:
    """Results of a run's finished phases."""

    run: str
    """The run's folder."""
    prompts: Phase[PromptCounts]
    generation: Phase[GenerationSummary]
    curation: Phase[CurationSummary]
    training: Phase[TrainingSummary] | None = None
    evaluation: Phase[EvaluationSummary] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        names = ("prompts", "generation", "curation", "training", "evaluation")
        return {name: phase.cost.seconds for name in names if (phase := getattr(self, name)) is not None}
