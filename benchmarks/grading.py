"""Measure how many labelled answers the grader judges as people did, and the time of the slowest call.

    python -m benchmarks.grading --pairs pairs.jsonl --gsm8k test.jsonl --math500 test.jsonl

`pairs.jsonl` has `gold`, `completion` and `label` (whether they are the same answer). GSM8K and MATH-500 are the data
sets' own files; each reference is graded against itself in several written forms.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgd_ray.grading.grade import grade


def main() -> None:
    """Print the results of each given file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "gsm8k", "math500"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    grade(r"\boxed{x+1}", "1+x")  # starts the algebra process, once per grading process
    if given.pairs:
        _judge_pairs(_rows(given.pairs))
    if given.gsm8k:
        _judge_forms("GSM8K", [(row["answer"].split("####")[1].strip(), row["answer"]) for row in _rows(given.gsm8k)])
    if given.math500:
        _judge_forms("MATH-500", [(row["answer"], row["solution"]) for row in _rows(given.math500)])


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _judge_pairs(rows: list[dict[str, Any]]) -> None:
    accepted = rejected = 0
    slowest = 0.0
    for row in rows:
        verdict, seconds = _timed(row["completion"], row["gold"])
        slowest = max(slowest, seconds)
        accepted += verdict and not row["label"]
        rejected += row["label"] and not verdict
    right = len(rows) - accepted - rejected
    print(f"pairs: {right} of {len(rows)} right ({right / len(rows):.1%}), {accepted} false accepts, ", end="")
    print(f"{rejected} false rejects, slowest {slowest:.2f} s")


def _judge_forms(name: str, answers: list[tuple[str, str]]) -> None:
    right: dict[str, int] = {}
    slowest = 0.0
    for gold, solution in answers:
        for form, completion in _forms(gold, solution):
            verdict, seconds = _timed(completion, gold)
            slowest = max(slowest, seconds)
            right[form] = right.get(form, 0) + verdict
    shares = ", ".join(f"{form} {count / len(answers):.2%}" for form, count in right.items())
    print(f"{name}, {len(answers)} references: {shares}; slowest {slowest:.2f} s")


def _forms(gold: str, solution: str) -> Iterator[tuple[str, str]]:
    yield "bare", gold
    yield "in a box", rf"So we get $\boxed{{{gold}}}$."
    yield "as a formula", f"The answer is ${gold}$."
    yield "in a sentence", f"So after all steps, the answer is {gold}."
    yield "as a solution", solution
    yield "#### N", f"Some steps.\n#### {gold}"


def _timed(completion: str, gold: str) -> tuple[bool, float]:
    started = time.perf_counter()
    return grade(completion, gold).correct, time.perf_counter() - started


if __name__ == "__main__":
    main()
