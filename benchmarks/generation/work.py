"""Input and output of all sides. Imports nothing that distilabel's environment lacks."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cgd_ray.prompts.templates import load_prompts

PROMPTS = load_prompts("default")
IN_FLIGHT = 64
MAX_MODEL_LEN = 2048
KV_CACHE_GIB = "2"

Message = dict[str, str]


@dataclass
class Task:
    """Prompts, models (directories) and limits; `setting` is the side's own choice."""

    student: str
    teacher: str
    max_tokens: dict[str, int]
    rows: list[dict[str, str]]
    dtype: str = "float32"
    in_flight: int = IN_FLIGHT
    """Rows that one of our engines processes at a time."""
    eager: bool = True
    """Whether to skip compilation, which costs more than it saves in such a short run on CPU."""
    setting: str = ""
    distilabel_python: str = ""

    @staticmethod
    def read(path: str) -> "Task":
        """Read the task from a JSON file."""
        return Task(**json.loads(Path(path).read_text()))


@dataclass
class Outcome:
    """Texts by prompt id and stage, and seconds. A row ends at a draft or critique that is cut off."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    generate_s: float = 0.0
    """Seconds without loading engines."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    """Tokens of all stages; None if a side does not count them."""

    def write(self, path: str) -> None:
        """Write the outcome for the harness."""
        Path(path).write_text(json.dumps(asdict(self)))


class Clock:
    """Adds up the seconds of blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._started


def messages(stage: str, row: dict[str, Any]) -> list[Message]:
    """Return the same conversations that cgd-ray uses."""
    if stage == "draft":
        return [{"role": "user", "content": row["prompt"]}]
    critique = [{"role": "user", "content": PROMPTS.critique(row["prompt"], row["draft"], None)}]
    if stage == "critique":
        return critique
    refine = PROMPTS.refine(row["prompt"], row["draft"], row["critique"])
    return [*critique, {"role": "assistant", "content": row["critique"]}, {"role": "user", "content": refine}]


def arguments() -> tuple[Task, str]:
    """Parse a side's command line: TASK.json OUTCOME.json."""
    return Task.read(sys.argv[1]), sys.argv[2]
