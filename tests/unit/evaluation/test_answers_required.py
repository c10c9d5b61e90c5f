"""A model that was hardly asked is not called wrong."""

import pyarrow as pa
import pytest

from cgd_ray.errors import CgdError
from cgd_ray.evaluation.run import _require_answers


def results(failed: int, answered: int, over_long: int = 0) -> pa.Table:
    lost = [{"status": "failed", "error": "refused"}] * failed
    lost += [{"status": "over-long", "error": "the prompt has 9 tokens"}] * over_long
    return pa.Table.from_pylist(lost + [{"status": "truncated", "error": None}] * answered)


def test_few_unanswered_prompts_are_borne() -> None:
    _require_answers(results(1, 9), "base student on s", 0.1)


def test_many_unanswered_prompts_are_named_with_their_reason() -> None:
    with pytest.raises(CgdError, match=r"the base student on s: 2 of 10 prompts have no answer.*refused"):
        _require_answers(results(2, 8), "base student on s", 0.1)


def test_over_long_prompts_are_no_failures_of_the_engine() -> None:
    _require_answers(results(1, 4, over_long=5), "base student on s", 0.1)


def test_a_model_that_answered_nothing_is_not_called_wrong() -> None:
    with pytest.raises(CgdError, match=r"none of 5 prompts has an answer. The last error: the prompt has 9 tokens"):
        _require_answers(results(0, 0, over_long=5), "base student on s", 0.1)
