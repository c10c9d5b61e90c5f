"""Gates: whether a trained student is good enough to be served, by paired differences on the evaluation sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cgd_ray.config.evaluation import BASE, EvaluationSection, Gate
from cgd_ray.errors import ConfigError
from cgd_ray.evaluation.statistics import Interval, Verdicts, paired_difference
from cgd_ray.evaluation.verdicts import read_correct
from cgd_ray.storage.runs import Run


@dataclass(frozen=True)
class GateResult:
    """Whether the trained student passed one gate."""

    passed: bool
    set: str
    against: str
    difference: float
    """Accuracy of the trained student minus that of the other."""
    interval: Interval
    text: str
    """The result as one line."""


def judge_gates(run: Run, section: EvaluationSection, seed: int) -> list[GateResult]:
    """Judge all gates of a run from its verdicts, and from those of the runs that it is compared with.

    A gain is shown if the interval's lower end reaches `min_gain`. That nothing was lost is a claim of its own, of
    non-inferiority: the lower end must be above `-max_drift`.

    Raises:
        ConfigError: a run that a gate names was not evaluated.
        CgdError: it was evaluated on other questions.
    """
    return [_judge(run, gate, section, seed) for gate in section.gates]


def require_passed(results: Sequence[Mapping[str, object]], name: str) -> None:
    """Refuse a student that failed a gate; `results` are as stored with the run's evaluation.

    Raises:
        ConfigError: it failed; the text names the gates.
    """
    failed = [str(result["text"]) for result in results if not result["passed"]]
    if failed:
        raise ConfigError(
            f"run {name}: its student failed {'; '.join(failed)}. Fix: train a better one, change evaluation.gates, or "
            "serve it all the same with serving.force=true"
        )


def _judge(run: Run, gate: Gate, section: EvaluationSection, seed: int) -> GateResult:
    trained, other = _verdicts(run, gate)
    paired = paired_difference(other, trained, section.confidence, section.resamples, seed)
    needed = {
        "min_gain": None if gate.min_gain is None else paired.interval.low >= gate.min_gain,
        "max_drift": None if gate.max_drift is None else paired.interval.low > -gate.max_drift,
    }
    passed = all(verdict is not False for verdict in needed.values())
    wanted = ", ".join(f"{name} {getattr(gate, name):g}" for name, verdict in needed.items() if verdict is not None)
    low, high = (f"{100 * end:+.1f}" for end in (paired.interval.low, paired.interval.high))
    text = f"gate {gate.set} against {gate.against} ({wanted}): {100 * paired.difference:+.1f} points, {low} to {high}"
    return GateResult(passed, gate.set, gate.against, paired.difference, paired.interval, text)


def _verdicts(run: Run, gate: Gate) -> tuple[Verdicts, Verdicts]:
    """Return the verdicts on the trained student, and on the one that it is compared with."""
    if gate.against == BASE:
        correct = read_correct({"trained": run})[gate.set]
        return correct["trained"], correct[BASE]
    other = Run(run.store, gate.against)
    try:
        correct = read_correct({"trained": run, "other": other})[gate.set]
    except FileNotFoundError as error:
        raise ConfigError(
            f"evaluation.gates: run {gate.against} has no evaluation. Fix: run it first, or name another run or {BASE}"
        ) from error
    return correct["trained"], correct["other"]
