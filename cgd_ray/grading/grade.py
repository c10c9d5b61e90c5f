"""Is a completion's answer right?"""

import atexit
import re
from dataclasses import dataclass
from functools import cache

from cgd_ray.grading.answers import gold_of, last_boxed, stated_answer
from cgd_ray.grading.quantities import is_words, plain, quantity, same_quantity, unwrap
from cgd_ray.grading.symbolic import SymbolicChecker

_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
VERSION = 3
"""Raise it whenever the grader, or a filter of curation, judges otherwise: what was made with it is made anew."""

_LONGEST_ANSWER = 300
"""Characters; longer "answers" are text that ran on."""


@dataclass(frozen=True)
class Grade:
    r"""The verdict on one completion."""

    correct: bool
    """Whether its answer equals the reference's, in a box or not."""

    boxed: bool
    r"""Whether the answer stood in a `\boxed{}`."""


def grade(completion: str, reference: str) -> Grade:
    r"""Compare a completion's answer with the reference's.

    The completion's answer is its last `\boxed{}`, else the one it states (`cgd_ray.grading.answers`).
    Numbers are compared exactly, words as words, the rest by math-verify (gold first: its comparison is not
    symmetric) in a child process with a limit on CPU time. Safe to call from any thread.

    Args:
        completion: A model's text; an empty one is wrong.
        reference: The data set's answer, with or without its solution (`gold_of`).

    Raises:
        CgdError: the child process cannot be started.
    """
    boxed = last_boxed(completion)
    answer = boxed if boxed is not None else stated_answer(completion)
    gold = gold_of(reference)
    return Grade(correct=bool(answer and gold) and equivalent(gold, answer or ""), boxed=boxed is not None)


def equivalent(gold: str, prediction: str) -> bool:
    """Whether two bare answers are the same.

    Raises:
        CgdError: the child process cannot be started.
    """
    if max(len(gold), len(prediction)) > _LONGEST_ANSWER:
        return False
    plain_gold, plain_prediction = plain(gold), plain(prediction)
    if not plain_gold or not plain_prediction:
        return False
    if _letters(plain_gold) == _letters(plain_prediction):
        return True
    quantities = quantity(plain_gold), quantity(plain_prediction)
    if quantities[0] is not None and quantities[1] is not None:
        return same_quantity(quantities[0], quantities[1])
    if is_words(plain_gold) or is_words(plain_prediction):
        return False
    return _checker().equal(unwrap(gold), unwrap(prediction))


def _letters(answer: str) -> str:
    """Without case, the parentheses of a choice such as (B), and spaces but between digits: 1 1/2 is not 11/2."""
    text = _SPACES.sub("", answer.casefold())
    return text[1:-1] if len(text) == 3 and text[0] == "(" and text[2] == ")" else text


@cache
def _checker() -> SymbolicChecker:
    """One per process: its child takes a second to start."""
    checker = SymbolicChecker()
    atexit.register(checker.close)
    return checker
