"""Input and output of all sides. Imports nothing that TRL's environment lacks."""

import hashlib
import json
import math
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

EPOCHS = 2
"""The first covers one-time costs: memory, compilation. The second is measured."""


@dataclass
class Task:
    """Rows as token ids with the index where each target starts, a model's directory; `setting` is the side's own."""

    model: str
    rows: list[tuple[list[int], int]]
    batch_size: int
    precision: str
    threads: int
    learning_rate: float = 1e-5
    setting: str = ""

    @staticmethod
    def read(path: str) -> "Task":
        """Read the task from a JSON file."""
        return Task(**json.loads(Path(path).read_text()))

    @property
    def digest(self) -> str:
        """Digest of the input of all sides and of what is measured: figures of two tasks are not comparable."""
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
    """Figures of the second epoch; the losses are of both epochs."""

    steps_s: float
    """Seconds from the first optimiser step's start to the last one's end."""
    steps: int
    losses: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def write(self, path: str) -> None:
        """Write the outcome for the harness, with this process's peak memory."""
        self.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Path(path).write_text(json.dumps(asdict(self)))


def arguments() -> tuple[Task, str]:
    """Parse a side's command line: TASK.json OUTCOME.json."""
    return Task.read(sys.argv[1]), sys.argv[2]
