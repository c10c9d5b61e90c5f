"""(b) The authors' design: three processes, one per stage, each of which loads its engine. Setting: `max_num_seqs`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.generation.bare import ask, load, outcome
from benchmarks.generation.work import Clock, Task, arguments

STAGES = ("draft", "critique", "refine")


def stage(name: str, task: Task, folder: Path) -> None:
    """Run one stage: read the rows of the stage before it, write its own."""
    before, clock = folder / f"{STAGES.index(name)}.json", Clock()
    rows = json.loads(before.read_text())
    waiting = [row for row in rows if row.get("whole", True)]
    engine = load(task.student if name == "draft" else task.teacher, task)
    with clock:
        whole = ask(engine, name, task, waiting)
    for row in waiting:
        row["whole"] = any(row is other for other in whole)
        row["seconds"] = row.get("seconds", 0.0) + clock.seconds
    (folder / f"{STAGES.index(name) + 1}.json").write_text(json.dumps(rows))


def main() -> None:
    """Run three processes one after the other."""
    if len(sys.argv) > 3:
        stage(sys.argv[2], Task.read(sys.argv[1]), Path(sys.argv[3]))
        return
    task, out = arguments()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "0.json").write_text(json.dumps(task.rows))
        for name in STAGES:
            command = [sys.executable, "-m", "benchmarks.generation.processes", sys.argv[1], name, folder]
            subprocess.run(command, check=True)
        rows = json.loads((Path(folder) / f"{len(STAGES)}.json").read_text())
    clock = Clock()
    clock.seconds = max(row["seconds"] for row in rows)
    outcome(rows, clock).write(out)


if __name__ == "__main__":
    main()
