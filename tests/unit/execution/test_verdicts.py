"""The verdict of a critique: its decorations, and the time that its search takes."""

import random
import re
import time

import pytest

from cgd_ray.execution.results import parse_verdict

_AS_BEFORE = re.compile(r"^\W*verdict\W+(right|wrong)\W*$", re.IGNORECASE | re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("- **Verdict:** *Right*.", "right"),
        ("### VERDICT — wrong!\r\n", "wrong"),
        ("Verdict:\n\n**right**\n---\n", "right"),
        ("\n\n  > Verdict: right\n\n", "right"),
        ("Verdict: right\n\n**Verdict: wrong**\n", "wrong"),
        ("Verdict: right and more", None),
        ("My verdict: right", None),
    ],
)
def test_a_verdict_may_be_decorated(text: str, verdict: str | None) -> None:
    assert parse_verdict(text) == verdict


def test_what_was_a_verdict_is_still_one() -> None:
    """A search within lines finds what a search over lines did."""
    draw = random.Random(7)
    pieces = ["\n", "\r", " ", "-", "*", "\u2028", "verdict", "Verdict:", "right", "wrong", "x", "_", ": "]
    for _ in range(20_000):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 14)))
        found = _AS_BEFORE.findall(text)
        assert parse_verdict(text) == (found[-1].lower() if found else None), repr(text)


def seconds(text: str) -> float:
    times = []
    for _ in range(3):
        started = time.process_time()
        parse_verdict(text)
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("unit", ["\n", "-\n", "* \n", "verdict\n", "verdict: right\n---\n", " "])
def test_the_search_takes_linear_time(unit: str) -> None:
    few, many = (unit * (size // len(unit)) + "x" for size in (50_000, 400_000))
    assert seconds(many) < 24 * max(seconds(few), 1e-3)  # 8 times the text; quadratic time would be 64 times as long
