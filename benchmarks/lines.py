"""JSON lines of a benchmark's runs: shown, kept, and found again by the same command."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def report(line: Line, output: Path) -> None:
    """Show a line, and keep it."""
    print(json.dumps(line), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")


def earlier(output: Path, task: str | None = None) -> dict[tuple[str, str], list[Line]]:
    """Runs that an interrupted benchmark has left, of this task only where it is named, by side and setting."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    if output.exists():
        for line in map(json.loads, output.read_text().splitlines()):
            if "median" not in line and line.get("task") == task:
                found[line["side"], line["setting"]].append(line)
    return found
