"""What all sides are given, and what they give back. Imports nothing that distilabel's environment lacks."""

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
    """Rows that an engine of ours works on at a time."""
    eager: bool = True
    """Without compilation, which costs more than it saves in so short a run on CPU."""
    setting: str = ""
    distilabel_python: str = ""

    @staticmethod
    def read(path: str) -> "Task":
        """The task in a JSON file."""
        return Task(**json.loads(Path(path).read_text()))


@dataclass
class Outcome:
    """Texts by prompt id and stage (a row whose draft or critique is cut off goes no further), and seconds."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    generate_s: float = 0.0
    """Without loading engines."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    """Of all stages; None where a side does not count them."""

    def write(self, path: str) -> None:
        """Leave it for the harness."""
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
    """The very conversations that cgd-ray asks for."""
    if stage == "draft":
        return [{"role": "user", "content": row["prompt"]}]
    critique = [{"role": "user", "content": PROMPTS.critique(row["prompt"], row["draft"], None)}]
    if stage == "critique":
        return critique
    refine = PROMPTS.refine(row["prompt"], row["draft"], row["critique"])
    return [*critique, {"role": "assistant", "content": row["critique"]}, {"role": "user", "content": refine}]


def arguments() -> tuple[Task, str]:
    """A side's command line: TASK.json OUTCOME.json."""
    return Task.read(sys.argv[1]), sys.argv[2]
