import time

import pytest

from cgd_ray.grading.answers import gold_of, stated_answer
from cgd_ray.grading.boxes import last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{3}, no wait, \boxed{4}.", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {x^{2}}", "x^{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5", None),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"} \boxed{8} {", "8"),
        ("", None),
    ],
)
def test_the_last_complete_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_a_box_opened_for_ever_takes_linear_time() -> None:
    started = time.perf_counter()
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("reference", "gold"),
    [
        ("9 * 2 = <<9*2=18>>18 dollars\n#### 18", "18"),
        ("#### 1,200  ", "1,200"),
        ("first #### is no mark\n#### 7\n", "7"),
        (r"We get $\boxed{\frac{3}{4}}$.", r"\frac{3}{4}"),
        ("42", "42"),
        (" Tuesday\n", "Tuesday"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)"),
        ("The answer is 12.", "12"),
        ("First add.\nThen halve.\nThe answer is 12 apples.", "12"),
        ("First add.\n" * 30 + "Then it is done.", ""),
        ("", ""),
    ],
)
def test_gold_of_a_reference(reference: str, gold: str) -> None:
    assert gold_of(reference) == gold


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 is 7.\nThe answer is 7.", "7"),
        ("The final answer is: $18.", "$18"),
        ("**Answer:** 18 dollars per day", "18 dollars per day"),
        ("Answer:\n\n1,250", "1,250"),
        ("The answer is 5. No, the answer is 6.", "6"),
        (r"The answer is $\frac{3}{4}$ of the cake.", r"\frac{3}{4}"),
        (r"The answer is \(x^2 + 1\).", "x^2 + 1"),
        ("The answer is Tuesday.", "Tuesday"),
        ("The answer is 3.5 hours.", "3.5 hours"),
        ("The answer is x = 5.", "5"),
        ("First 16 - 7 = 9.\nSo she makes 9 * 2 = $18 every day.", "$18"),
        ("It has 16 eggs. She sells 9 of them. Therefore, Janet makes $18 every day.", "$18"),
        ("#### 12", "12"),
        ("The answer is 72 million.", "72 million"),
        ("So there are minus 3 degrees", "minus 3 degrees"),
        ("He needs 4 + 2 = 6 hours", "6 hours"),
        ("The meeting is at 12:30", "12:30"),
    ],
)
def test_a_stated_answer_is_found(text: str, answer: str) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n ",
        "I would need to know more.",
        "She could have 12 or 15 or 18 eggs",  # rambling: the last number is no answer
        "There are 16 eggs and 7 are eaten, so she has some for 2 dollars",
        "So the rest is x^2",
        "So the total is 2x",
        "So she has (3 + 4",
        r"So we get \frac{3}{4",
        "The correct answer is not 72.",
        "The answer isn't 72",
    ],
)
def test_a_text_that_commits_to_no_answer_states_none(text: str) -> None:
    assert stated_answer(text) is None
