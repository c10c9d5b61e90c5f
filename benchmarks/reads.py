"""Simulate what a plan reads of one stage's table while many engines write it; no text is generated.

    python -m benchmarks.reads 10000000 [--engines 64] [--in-flight 256] [--seconds 20] [--flush-seconds 5]

Engines take blocks of a stream of prompts in the order of their ids, `in-flight` rows of each generate at a time for
`seconds` on average (log-normal, so that they end out of order), and finished rows become parts as `Committer` makes
them. Every ten minutes the small ones are merged by the rules of `storage/compaction.py`. Prints a JSON line for parts
without shards' borders (the former design) and one for parts with them. A line has the requests that write and merge
the table, the pages of its listing, and the cost of one plan at the end: parts fetched, rows read per row, MiB that the
driver holds.
"""

import argparse
import heapq
import json
import tracemalloc
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cgd_ray.data.prepare import PART_ROWS
from cgd_ray.stages.rows import _by_range
from cgd_ray.storage.compaction import EVERY_SECONDS, FEW_PARTS, SMALL_BYTES, _groups, _is_unmerged
from cgd_ray.storage.tables import ID_DIGITS

ROW_BYTES = 700  # a completion of about 500 tokens, compressed
FLUSH_ROWS = 256
ADMITTED = 8  # times the rows in flight
PAGE = 1000
IDS = 16**ID_DIGITS


@dataclass
class Engine:
    """State of one engine."""

    waiting: deque[int] = field(default_factory=deque)
    admitted: int = 0
    finished: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    timer: bool = False
    sequence: int = 0


class Simulation:
    """Simulates engines that write a table; a row is its rank among the ids, which are spread evenly."""

    def __init__(
        self, rows: int, engines: int, in_flight: int, seconds: float, flush_seconds: float, *, keeps_borders: bool
    ) -> None:
        self.rows, self.in_flight, self.keeps_borders = rows, in_flight, keeps_borders
        self.flush_seconds = flush_seconds
        shards = -(-rows // PART_ROWS)
        cuts = [IDS * shard // shards for shard in range(shards)]
        # Before borders were kept, parts of the prompts began at any id.
        aligned, anywhere = [-(-cut * rows // IDS) for cut in cuts], [rows * shard // shards for shard in range(shards)]
        steps = aligned if keeps_borders else anywhere
        self.starts = np.array([*steps, rows])
        self.prompts = [
            f"part-{shard:06d}-{self.digits(start)}-{self.digits(end - 1)}.parquet"
            for shard, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True))
        ]
        self.borders = [name.split("-")[2] for name in self.prompts[1:]] if keeps_borders else []
        self.few = max(FEW_PARTS, 8 * shards)
        self.parts: dict[str, np.ndarray] = {}
        self.requests: Counter[str] = Counter()
        self.engines = [Engine() for _ in range(engines)]
        self.block = max(8, in_flight // 8) * (1 + engines // 32)
        self.next_row = 0
        self.events: list[tuple[float, int, int]] = []
        self.latencies = self._latencies(seconds)

    def digits(self, rank: int) -> str:
        """Return the first digits of the id of that rank."""
        return f"{int(rank) * IDS // self.rows:0{ID_DIGITS}x}"

    def _latencies(self, seconds: float) -> Iterator[float]:
        chance = np.random.default_rng(0)
        while True:
            yield from (seconds * np.exp(chance.normal(-0.5, 1, 2**16))).tolist()

    def run(self) -> None:
        """Simulate the run from the first row to the last."""
        for number in range(len(self.engines)):
            self.fill(number, 0.0)
        merged = 0.0
        while self.events:
            now, number, row = heapq.heappop(self.events)
            if now > merged + EVERY_SECONDS:
                self.merge()
                merged = now
            engine = self.engines[number]
            if row < 0:
                self.flush(number, list(engine.finished))
                self.fill(number, now)
                continue
            shard = int(np.searchsorted(self.starts, row, "right")) if self.keeps_borders else 0
            engine.finished[shard].append(row)
            if engine.waiting:
                heapq.heappush(self.events, (now + next(self.latencies), number, engine.waiting.popleft()))
            if len(engine.finished[shard]) >= FLUSH_ROWS:
                self.flush(number, [shard])
                self.fill(number, now)
            if engine.finished and not engine.timer:
                engine.timer = True
                heapq.heappush(self.events, (now + self.flush_seconds, number, -1))

    def fill(self, number: int, now: float) -> None:
        """Give an engine as many blocks as it has room for."""
        engine = self.engines[number]
        while engine.admitted + self.block <= ADMITTED * self.in_flight and self.next_row < self.rows:
            block = range(self.next_row, min(self.rows, self.next_row + self.block))
            self.next_row = block.stop
            idle = max(0, self.in_flight - (engine.admitted - sum(map(len, engine.finished.values()))))
            engine.admitted += len(block)
            for row in block[:idle]:
                heapq.heappush(self.events, (now + next(self.latencies), number, row))
            engine.waiting.extend(block[idle:])

    def flush(self, number: int, shards: Sequence[int]) -> None:
        """Write parts of the finished rows of these shards."""
        engine = self.engines[number]
        for shard in shards:
            rows = np.sort(engine.finished.pop(shard))
            engine.admitted -= len(rows)
            engine.sequence += 1
            self.write(f"part-0001-{number}-{engine.sequence:06d}", rows)
        engine.timer = engine.timer and bool(engine.finished)

    def write(self, name: str, rows: np.ndarray) -> None:
        """Write one part with one put."""
        self.requests["put"] += 1
        self.parts[f"{name}-{self.digits(rows[0])}-{self.digits(rows[-1])}.parquet"] = rows

    def merge(self) -> None:
        """Merge the small parts if they are many."""
        sizes = {part: ROW_BYTES * len(rows) for part, rows in self.parts.items() if _is_unmerged(part)}
        small = {part: size for part, size in sizes.items() if size < SMALL_BYTES}
        self.requests["list"] += -(-len(self.parts) // PAGE)
        if len(small) <= self.few:
            return
        for group in list(_groups(small, self.borders)):
            rows = np.sort(np.concatenate([self.parts.pop(part) for part in group]))
            self.requests["get"] += len(group)
            self.requests["put"] += 1  # the note
            for number, piece in enumerate(self.split(rows)):
                self.write(f"part-0001-merged{self.requests['put']}-{number:06d}", piece)
        self.requests["delete"] += -(-len(small) // PAGE)

    def split(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Split rows as `compaction` does."""
        cuts = np.searchsorted(rows, self.starts[1:-1]) if self.keeps_borders else []
        for piece in np.split(rows, np.unique(cuts).astype(int)):
            yield from (piece[start : start + PART_ROWS] for start in range(0, len(piece), PART_ROWS))

    def plan(self) -> dict[str, Any]:
        """Return what a plan fetches and reads at this point."""
        tracemalloc.start()
        names = sorted(str(name) for name in list(self.parts))
        by_shard = _by_range(self.prompts, names)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        fetched = [part for parts in by_shard for part in parts]
        return {
            "parts": len(names),
            "fetched": len(fetched),
            "pages_of_a_listing": -(-len(names) // PAGE),
            "rows_read_per_row": round(sum(len(self.parts[part]) for part in fetched) / self.rows, 2),
            "driver_mib": round(held / 2**20, 1),
        }


def main() -> None:
    """Simulate parts without borders and with them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--engines", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--flush-seconds", type=float, default=5.0, help="storage.flush_seconds")
    given = parser.parse_args()
    for keeps_borders in (False, True):
        settings = (given.rows, given.engines, given.in_flight, given.seconds, given.flush_seconds)
        simulation = Simulation(*settings, keeps_borders=keeps_borders)
        simulation.run()
        told = {"rows": given.rows, "keeps_borders": keeps_borders, "requests": dict(simulation.requests)}
        print(json.dumps(told | simulation.plan()), flush=True)


if __name__ == "__main__":
    main()
