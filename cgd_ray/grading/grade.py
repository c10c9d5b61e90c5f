"""Grade a completion: compare its answer with the reference's."""

import atexit
import re
from dataclasses import dataclass
from functools import cache

from cgd_ray.grading.answers import gold_of, stated_answer
from cgd_ray.grading.boxes import last_boxed, last_boxes
from cgd_ray.grading.codes import differs_in_marks, same_code
from cgd_ray.grading.expressions import for_algebra, has_unknown, is_mathematical, side_of
from cgd_ray.grading.normal import latex, plain
from cgd_ray.grading.quantities import (
    choice_of,
    is_words,
    quantity,
    same_quantity,
    same_time,
    text_of_choice,
    without_remark,
)
from cgd_ray.grading.symbolic import SymbolicChecker

_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
VERSION = 5
"""Increase it whenever the grader or a curation filter changes a verdict: results made with it are then made anew."""

_LONGEST_ANSWER = 2000
"""Characters; longer "answers" are text without an end."""


@dataclass(frozen=True)
class Grade:
    r"""The verdict on one completion."""

    correct: bool
    """Whether its answer equals the reference's, in a box or not."""

    boxed: bool
    r"""Whether the answer is in a `\boxed{}`."""


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
    is_correct = bool(answer and gold) and equivalent(gold, answer or "") and _boxes_agree(completion, reference)
    return Grade(correct=is_correct, boxed=boxed is not None)


def _boxes_agree(completion: str, reference: str) -> bool:
    """Whether all boxes agree, if both texts end with the same number of them."""
    given, wanted = last_boxes(completion), last_boxes(reference)
    return len(given) != len(wanted) or all(map(equivalent, wanted[:-1], given[:-1]))


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
        return plain_gold == plain_prediction or not _differ_in_case(plain_gold, plain_prediction)
    typed = _same_typed(without_remark(plain_gold), without_remark(plain_prediction))
    return _same_formula(gold, prediction) if typed is None else typed


def _differ_in_case(gold: str, prediction: str) -> bool:
    """Whether two quantities that are equal but for case have different units: 5 mW and 5 MW."""
    first, second = quantity(gold), quantity(prediction)
    return first is not None and second is not None and first.measure != second.measure


def _same_formula(gold: str, prediction: str) -> bool:
    sides = side_of(latex(gold)), side_of(latex(prediction))
    if differs_in_marks(latex(gold), latex(prediction)) and ("=" in plain(gold)) == ("=" in plain(prediction)):
        return False
    if ("=" in plain(gold)) != ("=" in plain(prediction)):  # two equations may be equal as a whole
        left, right = sides
        # A relation such as <= keeps its sign, and would come here again.
        if left is None or right is None or ("=" in plain(left)) != ("=" in plain(right)):
            return False
        return equivalent(left, right)
    formulas = for_algebra(gold), for_algebra(prediction)
    # Algebra may read the ab of 2ab as a unit.
    is_other = any(
        quantity(plain(number)) is not None and has_unknown(other) and not has_unknown(number)
        for number, other in (formulas, formulas[::-1])
    )
    are_formulas = all(is_mathematical(plain(formula)) for formula in formulas)
    return are_formulas and not is_other and _checker().equal(*formulas)


def _same_typed(gold: str, prediction: str) -> bool | None:
    """Compare times, choices, numbers and words; None if only algebra can decide."""
    if (verdict := same_time(gold, prediction)) is not None:
        return verdict
    if (verdict := _same_choice(gold, prediction)) is not None:
        return verdict
    if (verdict := same_code(gold, prediction)) is not None:
        return verdict
    quantities = quantity(gold), quantity(prediction)
    if quantities[0] is not None and quantities[1] is not None:
        return same_quantity(quantities[0], quantities[1])
    if is_words(gold) or is_words(prediction):
        return False
    return None


def _same_choice(gold: str, prediction: str) -> bool | None:
    """Compare two choices, or a choice's text with an answer; None if neither is a choice."""
    choices = choice_of(gold), choice_of(prediction)
    if not any(choices):
        return None
    letters = [choice or _letters(text) for choice, text in zip(choices, (gold, prediction), strict=True)]
    if all(len(letter) == 1 and letter.isalpha() for letter in letters):
        return letters[0] == letters[1]
    texts = text_of_choice(gold), text_of_choice(prediction)
    if bool(texts[0]) == bool(texts[1]) or any(map(choice_of, texts)):
        return None
    return equivalent(texts[0] or gold, texts[1] or prediction)


def _letters(answer: str) -> str:
    """Remove case, the parentheses of a choice such as (B), and spaces except between digits: 1 1/2 is not 11/2."""
    text = _SPACES.sub("", answer.casefold())
    return text[1:-1] if len(text) == 3 and text[0] == "(" and text[2] == ")" else text


@cache
def _checker() -> SymbolicChecker:
    """Return the checker, one per process: its child takes a second to start."""
    checker = SymbolicChecker()
    atexit.register(checker.close)
    return checker
