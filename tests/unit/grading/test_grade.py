import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.errors import CgdError
from cgd_ray.grading.grade import Grade, equivalent, grade
from cgd_ray.grading.symbolic import SymbolicChecker


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("18", "$18.00"),
        ("18", r"\$18.00"),
        ("18", "18 eggs"),
        ("18", r"18\text{ dollars per day}"),
        ("$18", "18 dollars"),
        ("1200", "1,200"),
        ("1,200", "1200.0"),
        ("10,\\!000", "10000"),
        ("3/4", "0.75"),
        (r"\frac{3}{4}", "3/4"),
        ("0.75", r"\dfrac{3}{4}"),
        ("3/4", "6/8"),
        ("1 1/2", "1.5"),
        ("1200000", "1.2 million"),
        ("5 foot", "5 feet"),
        ("-7", "minus 7"),
        ("36", "3 dozen"),
        ("$5", "5 dollars per day"),
        (r"1\frac{1}{2}", "3/2"),
        ("1/3", "0.333333"),
        (".5", "0.5"),
        ("-7", "\N{MINUS SIGN}7"),
        ("- 7", "-7.0"),
        ("-$5", "-5"),
        ("25", r"25\%"),
        ("25%", "25 percent"),
        ("25%", "0.25"),
        ("007", "7"),
        ("90^\\circ", "90"),
        ("Tuesday", r"\text{tuesday}"),
        ("no solution", "No solution."),
        ("(B)", "B"),
        ("12:30", "12:30"),
        # algebra
        ("2\\sqrt{3}", "\\sqrt{12}"),
        ("6+9i", "9i + 6"),
        ("5", "x=5"),
        ("x \\in [-2,7]", "[-2,7]"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("x^2-1", "(x-1)(x+1)"),
        ("1, 2", "2, 1"),
        ("16", "18 - 2"),
    ],
)
def test_equal_answers(gold: str, prediction: str) -> None:
    assert equivalent(gold, prediction)


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        ("0.01", "0.04"),
        ("0.04", "0.01"),
        ("0.0000001", "0.0000004"),
        ("10000000", "10000001"),
        ("18", "18.000001"),
        ("1/3", "0.33"),
        ("12.50", "12.5 km 2"),
        ("18", "-18"),
        ("18", "1.8"),
        ("18 cm", "18 m"),
        ("5.5", "5 hours 30 minutes"),
        ("5", "5 hours 30 minutes"),
        ("3", "3 or 4"),
        ("2", "2, 3"),
        ("2", "2x"),
        ("2", "x^2"),
        ("12.5", "12:30"),
        ("east", "seat"),
        ("Tuesday", "Thursday"),
        ("Tuesday", "2"),
        ("7", ""),
        ("", ""),
        ("p - q", "q - p"),
        ("1/0", "0"),
        ("5", r"\frac{5"),
        ("5", "5" * 5000),
        ("1 1/2", "11/2"),
        ("72", "7 2"),
        ("72", "72 million"),
        ("72", "minus 72"),
        ("72", "not 72"),
        ("72", "half 72"),
        ("5", "5 dozen"),
        ("$5", "5 cents"),
        ("$5", "€5"),
    ],
)
def test_unequal_answers(gold: str, prediction: str) -> None:
    assert not equivalent(gold, prediction)


def test_a_box_comes_before_any_other_statement() -> None:
    assert grade(r"The answer is 4. \boxed{5}", "#### 5") == Grade(correct=True, boxed=True)
    assert grade(r"\boxed{5}. The answer is 4.", "#### 4") == Grade(correct=False, boxed=True)


def test_correct_without_a_box_counts_and_is_told_apart() -> None:
    assert grade("9 * 2 = 18. The answer is 18.", "#### 18") == Grade(correct=True, boxed=False)


def test_the_last_number_of_rambling_is_no_answer() -> None:
    assert not grade("It could be 12, or 15, or else 18", "#### 18").correct


@pytest.mark.parametrize("completion", ["", "  \n", r"\boxed{}", "I do not know."])
def test_a_completion_without_an_answer_is_wrong(completion: str) -> None:
    assert grade(completion, "#### 18") == Grade(correct=False, boxed=False)


def test_a_reference_without_an_answer_makes_nothing_right() -> None:
    assert not grade(r"\boxed{5}", "").correct


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_equal_exactly_when_their_values_are(left: Fraction, right: Fraction) -> None:
    assert grade(rf"\boxed{{{left}}}", f"#### {right}").correct == (left == right)


@given(st.integers(-(10**9), 10**9), st.integers(0, 99))
def test_money_is_equal_however_it_is_written(dollars: int, cents: int) -> None:
    gold = f"{dollars}.{cents:02d}"
    written = [f"${dollars:,}.{cents:02d}", rf"\${gold}", f"{gold} dollars", f"{gold}0"]
    assert all(equivalent(gold, text) for text in written)
    assert not equivalent(gold, f"{dollars}.{(cents + 1) % 100:02d}")


@given(st.text(max_size=80))
def test_no_text_breaks_the_grader(text: str) -> None:
    # Without digits or LaTeX no answer can equal 18.
    harmless = "".join(c for c in text if not c.isnumeric() and c not in "\\^")
    assert not grade(harmless, "#### 18").correct


@pytest.mark.parametrize(
    "pathological",
    ["9^{9^{9^9}}", "9^{9^{9^{9^9}}} - 1", "(" * 120 + "x" + ")" * 120, r"10^{10^{10}}!", r"\frac{1}{0}"],
)
def test_a_pathological_answer_is_wrong_within_bounds(pathological: str) -> None:
    started = time.perf_counter()
    assert not grade(rf"\boxed{{{pathological}}}", "#### 18").correct
    assert time.perf_counter() - started < 20
    assert grade(r"\boxed{2\sqrt{3}}", r"#### \sqrt{12}").correct


def test_grading_works_in_any_thread() -> None:
    verdicts: list[bool] = []

    def work() -> None:
        verdicts.append(grade(r"\boxed{2\sqrt{3}}", r"\sqrt{12}").correct)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 4


def test_a_thousand_completions_take_seconds() -> None:
    started = time.perf_counter()
    for i in range(1000):
        text = "She has some eggs and sells the rest. " * 40 + rf"So it is \boxed{{{i}}}."
        assert grade(text, f"some steps\n#### {i}").correct
    assert time.perf_counter() - started < 5


def test_a_checker_whose_child_was_killed_asks_a_new_one() -> None:
    checker = SymbolicChecker()
    try:
        assert checker.equal("x+1", "1+x")
        assert checker._child is not None
        checker._child.kill()
        assert checker.equal("x+1", "1+x")
    finally:
        checker.close()


def test_a_child_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CgdError, match="did not start"):
        SymbolicChecker().equal("x+1", "1+x")
