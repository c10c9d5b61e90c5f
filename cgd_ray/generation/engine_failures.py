"""Record of engines that could not start or were lost: kept in the run's folder, where `cgd status` reads it."""

from collections.abc import Callable
from datetime import UTC, datetime

from cgd_ray.execution.coordinator import Snapshot
from cgd_ray.storage.runs import Run

_FILE = "engines.json"


def clear_failures(run: Run) -> None:
    """Clear the record: failures on an earlier command's nodes do not apply to this command's nodes."""
    if recorded_failures(run):
        run.write_json(_FILE, {"troubles": []})


def recording_failures(run: Run, check: Callable[[Snapshot], object]) -> Callable[[Snapshot], None]:
    """Return a check that first records each engine that is gone, beside those of the command's earlier parts."""
    earlier = recorded_failures(run)
    said = 0

    def look(snapshot: Snapshot) -> None:
        nonlocal said
        if new := snapshot.troubles[said:]:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            earlier.extend(f"{now}: {' '.join(trouble.split())}" for trouble in new)
            run.write_json(_FILE, {"troubles": earlier})
            said = len(snapshot.troubles)
        check(snapshot)

    return look


def recorded_failures(run: Run) -> list[str]:
    """Return the failures of the last command that generated, one line each, with its time."""
    document = run.read_json(_FILE)
    return list(document["troubles"]) if document else []
