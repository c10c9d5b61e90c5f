"""What all sides are given, and what they give back. Imports nothing that TRL's environment lacks."""

import hashlib
import json
import math
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

EPOCHS = 2
"""The first is for what comes once: memory, compilation. The second is measured."""


@dataclass
class Task:
    """Rows as token ids with the place where each target starts, a model's directory; `setting` is the side's own."""

    model: str
    rows: list[tuple[list[int], int]]
    batch_size: int
    precision: str
    threads: int
    learning_rate: float = 1e-5
    setting: str = ""

    @staticmethod
    def read(path: str) -> "Task":
        """The task in a JSON file."""
        return Task(**json.loads(Path(path).read_text()))

    @property
    def digest(self) -> str:
        """Of what all sides are given, and of what is measured: figures of two tasks are not to be compared."""
        given = asdict(self) | {"setting": "", "model": Path(self.model).name, "epochs": EPOCHS}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def supervised(self) -> int:
        """Supervised tokens of an epoch."""
        return sum(len(ids) - start for ids, start in self.rows)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(len(self.rows) / self.batch_size)


@dataclass
class Outcome:
    """Of the second epoch; the losses are of both."""

    steps_s: float
    """Seconds from the first optimiser step's start to the last one's end."""
    steps: int
    losses: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def write(self, path: str) -> None:
        """Leave it for the harness, with the most memory that this process ever had."""
        self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Path(path).write_text(json.dumps(asdict(self)))


def arguments() -> tuple[Task, str]:
    """A side's command line: TASK.json OUTCOME.json."""
    return Task.read(sys.argv[1]), sys.argv[2]
