"""A student that gains too little, or loses what it could do, does not pass."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cgd_ray.config.evaluation import Decoding, EvaluationSection
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.evaluation.gates import judge_gates, require_passed
from cgd_ray.evaluation.questions import QuestionSet
from cgd_ray.evaluation.scores import Graded
from cgd_ray.evaluation.verdicts import write_verdicts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run

QUESTIONS = 400


def evaluated(root: Path, name: str, base: float, trained: float, questions: int = QUESTIONS) -> Run:
    """A run whose students answer these shares of the questions correctly, the trained one all of the base's."""
    run = Run(Store(str(root)), name)
    rows = pa.table({"prompt_id": [f"{number:032x}" for number in range(questions)]})
    shares = {"base": base, "trained": trained}
    right = {student: np.arange(questions)[None] < share * questions for student, share in shares.items()}
    none = np.zeros((1, questions), int)
    graded = {student: {"heldout": Graded(marks, marks, none, none, none)} for student, marks in right.items()}
    write_verdicts(run, [QuestionSet("heldout", "report", rows, Decoding(), 1)], graded)
    return run


def section(**gate: object) -> EvaluationSection:
    return EvaluationSection.model_validate({"gates": [{"set": "heldout", **gate}]})


@pytest.mark.parametrize(
    ("trained", "gate", "passed"),
    [
        (0.40, {"min_gain": 0}, True),
        (0.305, {"min_gain": 0}, False),  # two questions of 400 show nothing
        (0.40, {"min_gain": 0.09}, False),  # ten points, but not surely nine
        (0.30, {"max_drift": 0.02}, True),
        (0.20, {"max_drift": 0.02}, False),  # a planted drift
        (0.285, {"max_drift": 0.02}, False),  # a loss of 1.5 points may be more than two
        (0.40, {"min_gain": 0.05, "max_drift": 0.02}, True),
    ],
)
def test_the_intervals_lower_end_decides(
    tmp_path: Path, trained: float, gate: dict[str, object], *, passed: bool
) -> None:
    run = evaluated(tmp_path, "r", 0.3, trained)
    [result] = judge_gates(run, section(**gate), seed=0)
    assert result.passed is passed
    assert result.difference == pytest.approx(trained - 0.3)
    if passed:
        require_passed([asdict(result)], "r")
    else:
        with pytest.raises(ConfigError, match=r"run r: its student failed gate heldout against base \(.*serving.force"):
            require_passed([asdict(result)], "r")


def test_another_run_is_a_rival(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "r", 0.3, 0.4)
    evaluated(tmp_path, "rival", 0.3, 0.5)
    [result] = judge_gates(run, section(against="rival", min_gain=0), seed=0)
    assert (result.passed, result.difference) == (False, pytest.approx(-0.1))
    with pytest.raises(ConfigError, match=r"evaluation\.gates: run nobody has no evaluation"):
        judge_gates(run, section(against="nobody", min_gain=0), seed=0)
    evaluated(tmp_path, "other questions", 0.3, 0.5, questions=300)
    with pytest.raises(CgdError, match="was evaluated on other questions"):
        judge_gates(run, section(against="other questions", min_gain=0), seed=0)


@pytest.mark.parametrize("gate", [{}, {"set": "nothing", "min_gain": 0}, {"max_drift": 0}])
def test_gates_that_say_nothing_are_refused(gate: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="gates"):
        section(**gate)
