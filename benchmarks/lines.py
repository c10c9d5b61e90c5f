"""JSON lines of a benchmark's runs: print and store them, and read those of an interrupted benchmark."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def report(line: Line, output: Path) -> None:
    """Print a line, and append it to the output file."""
    print(json.dumps(line), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")


def earlier(output: Path, task: str | None = None) -> dict[tuple[str, str], list[Line]]:
    """Return stored runs by side and setting: those of this task, or those without a task for None."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    if output.exists():
        for line in map(json.loads, output.read_text().splitlines()):
            if "median" not in line and line.get("task") == task:
                found[line["side"], line["setting"]].append(line)
    return found
