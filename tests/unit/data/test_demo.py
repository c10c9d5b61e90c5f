import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgd_ray.data.demo.problems import NOVEL_KINDS, SEEN_KINDS, DemoProblem, demo_problem
from cgd_ray.data.prompt_id import prompt_id
from cgd_ray.grading.grade import Grade, grade

_EQUATION = re.compile(r"([\d$.,+\-*/() ]*\d) = \$?(\d+(?:\.\d+)?(?:/\d+)?)")

problems = st.builds(demo_problem, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 5), novel=st.booleans())


def equations(problem: DemoProblem) -> list[tuple[Fraction, Fraction]]:
    """Both sides of the equation of every step, computed without the generator's help."""
    sides = []
    for line in problem.reference.splitlines()[:-1]:
        ((left, right),) = _EQUATION.findall(line)
        exact = re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", left.replace("$", ""))
        sides.append((eval(exact, {"Fraction": Fraction}), Fraction(right)))  # noqa: S307  digits and operators only
    return sides


@given(problems)
def test_every_step_is_one_true_equation_and_the_last_gives_the_gold(problem: DemoProblem) -> None:
    sides = equations(problem)
    assert all(left == right for left, right in sides)
    assert sides[-1][1] == Fraction(problem.gold)


@given(problems)
def test_numbers_are_positive_and_the_text_is_clean(problem: DemoProblem) -> None:
    assert Fraction(problem.gold) > 0
    assert re.search(r"-\d|\s\s|\.\.|\{|\bNone\b", problem.prompt) is None
    assert re.fullmatch(r"\d+|\d+\.\d\d|\d+/\d+", problem.gold)
    prices = re.findall(r"\$(\d[\d.]*\d|\d)", problem.prompt)
    assert all(re.fullmatch(r"\d+|\d+\.\d\d", price) for price in prices)
    assert problem.prompt.endswith(("?", "terms."))


@given(problems)
def test_the_reference_is_graded_right_against_itself(problem: DemoProblem) -> None:
    assert grade(problem.reference, problem.reference) == Grade(correct=True, boxed=True)
    assert grade(rf"\boxed{{{problem.gold}}}", problem.reference).correct


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 5), st.booleans())
@example(77668, 510510, 3, True)  # noqa: FBT003  an average that once left a number below 0
def test_a_problem_is_pure_and_has_at_most_max_steps(seed: int, index: int, steps: int, novel: bool) -> None:  # noqa: FBT001
    problem = demo_problem(seed, index, steps, novel=novel)
    assert problem == demo_problem(seed, index, steps, novel=novel)
    assert 1 <= len(equations(problem)) <= steps
    assert not problem.gold.startswith("-")


def test_the_first_problems_of_seed_0_never_change() -> None:
    # Another text here means another DEMO_VERSION.
    assert demo_problem(0, 0, 3, novel=False).prompt == (
        "Wanda buys 5 jars of honey at $12 each and 7 brushes at $5 each. How many dollars does Wanda pay in total?"
    )
    assert demo_problem(0, 0, 3, novel=True).prompt == (
        "Ivan counts these kilometers on a run, week by week: 40, 37, 40 and 39. What is the average per week?"
    )


def test_a_third_of_the_kinds_are_novel_and_none_is_both() -> None:
    seen = {kind.__name__ for kind in SEEN_KINDS}
    novel = {kind.__name__ for kind in NOVEL_KINDS}
    assert len(seen) >= 14
    assert len(novel) == len(NOVEL_KINDS) == (len(seen) + len(novel)) // 3
    assert not seen & novel


@pytest.mark.parametrize("novel", [False, True])
def test_twenty_thousand_problems_are_nearly_all_distinct(novel: bool) -> None:  # noqa: FBT001
    drawn = [demo_problem(0, index, 3, novel=novel) for index in range(20_000)]
    assert len({prompt_id(problem.prompt) for problem in drawn}) > 0.95 * len(drawn)
    by_kind = Counter(problem.kind for problem in drawn)
    assert max(by_kind.values()) - min(by_kind.values()) <= 1
    steps = Counter(problem.reference.count("\n") for problem in drawn)
    assert min(steps[number] for number in (1, 2, 3)) > 0.2 * len(drawn)


def test_more_steps_make_longer_solutions() -> None:
    drawn = [demo_problem(0, index, 5, novel=False) for index in range(500)]
    assert max(len(equations(problem)) for problem in drawn) == 5
