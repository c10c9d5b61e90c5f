"""Faults at seeded random times in a real run of `jobs/generate.py`, and what must hold once it has been run again."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from cgd_ray.config.recipe import Recipe, load_recipe
from cgd_ray.data.prepare import prepare_prompts
from cgd_ray.generation.planning import plan
from cgd_ray.stages.resolved import resolve
from cgd_ray.stages.rows import Join
from cgd_ray.storage.filesystem import Store
from tests.faulty_s3 import Fault, FaultyProxy, faulty_proxy
from tests.servers import REPOSITORY, S3Server, s3_server

S3_FAULTS: dict[str, Fault] = {"s3 503": "503", "s3 slow": "slow", "s3 torn": "torn"}
FAULTS = ["driver", "engine", "raylet", "node", "disk full", "s3 killed", *S3_FAULTS]
PROMPTS, SAMPLES = 150, 2
STAGES = ("draft", "answer", "critique", "refine")
SCRIPTED = {"type": "scripted", "latency_ms": 30, "max_in_flight": 8, "truncate_fraction": 0.03}
SETTINGS = [
    f"data.limit={PROMPTS}",
    "data.holdout.count=2",
    "data.seed=5",
    f"generation.draft.samples={SAMPLES}",
    "generation.draft.temperature=0.7",
    "curation.require_correct=false",
    "curation.require_verdict=false",
    "generation.critique.verdict=written",
    "storage.flush_seconds=0.4",
    "run.name=chaos",
]
SCRIPTED_ENGINES = [
    f"student.engine={SCRIPTED | {'latency_ms': 100}}",
    f"teacher.engine={SCRIPTED | {'model': 't'}}",
]
_RUN_SECONDS, _VLLM_SECONDS = 180, 600  # engines that compute in float32 on AVX2 take four minutes
_OUTAGE_SECONDS = 5.0
_LAST_STRIKE = 4.0  # seconds after the first draft is on storage; the run takes about as long

Results = dict[str, pa.Table]
"""By stage: one row for each key, sorted, of the columns that are the same in every run."""
Parts = dict[str, bytes]
Key = tuple[str, str, int]
"""Stage, prompt, sample."""


@dataclass
class Place:
    """Where a trial's command runs and what it writes to."""

    root: str
    scratch: Path
    settings: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    look: list[str] | None = None  # settings of who only looks, where they differ
    engines: list[str] = field(default_factory=lambda: SCRIPTED_ENGINES)
    seconds: float = _RUN_SECONDS  # of a command

    def recipe(self) -> Recipe:
        settings = self.settings if self.look is None else self.look
        return load_recipe("jobs/recipes/demo.yaml", [*SETTINGS, f"run.root={self.root}", *self.engines, *settings])

    def command(self) -> list[str]:
        settings = [*SETTINGS, f"run.root={self.root}", *self.engines, *self.settings]
        return [sys.executable, "jobs/generate.py", "jobs/recipes/demo.yaml", *settings]

    def start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"} | self.environment
        return subprocess.Popen(
            self.command(), cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self) -> None:
        process = self.start()
        _, errors = process.communicate(timeout=self.seconds)
        assert process.returncode == 0, errors

    def committed(self) -> Parts:
        """All parts of the stages, as they are on storage now."""
        recipe = self.recipe()
        store = Store(recipe.run.root, recipe.storage)
        return {
            name: store.read(name)
            for stage in STAGES
            for fingerprint in store.folders(f"tables/{stage}")
            for part in store.names(f"tables/{stage}/{fingerprint}", ".parquet")
            for name in [f"tables/{stage}/{fingerprint}/{part}"]
        }

    def results(self) -> Results:
        """What the stages hold, checked: one result for each row, and each made from what is stored beside it."""
        recipe = self.recipe()
        store = Store(recipe.run.root, recipe.storage)
        stages, prompts = resolve(recipe, store).stages, prepare_prompts(recipe, store).table
        join = Join(prompts, recipe.generation.draft.samples, stages.all)
        assert plan(join).is_done
        for row in join:  # results that belong to other texts than those beside them are not joined
            for stage in stages.all:
                whole = all(row.texts.get(name) is not None for name in stage.inputs if name in STAGES)
                assert (row.results[stage.name] is not None) == whole, (row.texts["prompt_id"], stage.name)
        for stage in stages.all:
            rows = pa.concat_tables(list(stage.results.batches()))
            keys = (rows[name].to_pylist() for name in ("prompt_id", "sample", "parent"))
            counts = Counter(zip(*keys, strict=True))
            assert max(counts.values()) == 1, (stage.name, counts.most_common(1))
        return {stage.name: stage.results.read().drop_columns("attempt").combine_chunks() for stage in stages.all}


def paid_twice(before: Parts, after: Parts) -> int:
    """Rows that were on storage before and were generated again; all that were there must be there, unchanged."""
    committed, now = _rows(before), _rows(after)
    for key, rows in committed.items():
        assert rows[0] in now[key], key
    return sum(len(now[key]) > 1 for key in committed)


def uninterrupted(folder: Path) -> Results:
    """The results of a run that nothing happens to."""
    place = Place(str(folder / "root"), folder)
    place.run()
    return place.results()


@dataclass(frozen=True)
class Outcome:
    """What was done to a run, and how its tables stand after the same command ran again."""

    said: str
    paid_twice: int
    """Rows that were on storage before and were generated again."""
    results: Results

    def differing(self, expected: Results) -> list[str]:
        """Stages that differ from an uninterrupted run's."""
        return [stage for stage, table in expected.items() if not self.results[stage].equals(table)]


def trial(folder: Path, seed: int) -> Outcome:
    """One fault, the time and the victim of which the seed decides, and the same command again.

    Raises:
        AssertionError: a command did not end as it should, a row has no result or two, or one of other texts.
    """
    fault, chance = FAULTS[seed % len(FAULTS)], random.Random(seed)
    with _place(fault, folder, seed) as (place, strike):
        return _strike_and_resume(f"seed {seed}: {fault}", place, strike, chance)


def vllm_trial(folder: Path, victim: str, seed: int, engines: list[str]) -> Outcome:
    """The same with real engines, whose texts may differ from run to run, and a victim of the caller's choice."""
    place = Place(str(folder / "root"), folder, engines=engines, seconds=_VLLM_SECONDS)
    strike = partial(_kill, victim=victim)
    return _strike_and_resume(f"vLLM, seed {seed}: {victim}", place, strike, random.Random(seed))


Strike = Callable[[Place, random.Random], tuple[Parts, str]]


def _strike_and_resume(title: str, place: Place, strike: Strike, chance: random.Random) -> Outcome:
    before, said = strike(place, chance)
    place.run()
    again = paid_twice(before, place.committed())
    rows = Counter(stage for stage, _, _ in _rows(before))
    said = f"{title}: {said}, {_phase(rows)}; committed before: {dict(rows)}; of those generated again: {again}"
    return Outcome(said, again, place.results())


def _phase(rows: Counter[str]) -> str:
    """Stages that had begun and were not whole."""
    if not rows:
        return "before the first row"
    most = max(rows.values())
    going = [stage for stage in STAGES if rows[stage] < most or (stage == STAGES[0] and most < PROMPTS * SAMPLES)]
    return f"during {', '.join(going)}" if going else "after the last row"


@contextlib.contextmanager
def _place(fault: str, folder: Path, seed: int) -> Iterator[tuple[Place, Strike]]:
    if fault.startswith("s3"):
        (folder / "s3").mkdir()
        with s3_server(folder / "s3") as server, faulty_proxy(server.port, seed) as proxy:
            through = [f"storage.endpoint_url=http://127.0.0.1:{proxy.port}"]
            directly = [f"storage.endpoint_url={server.endpoint}"]
            place = Place(server.url("root"), folder, through, server.environment, look=directly)
            yield place, partial(_strike_s3, fault=fault, server=server, proxy=proxy)
    elif fault == "disk full":
        yield Place(str(folder / "root"), folder), _fill_disk
    elif fault == "node":
        with _two_nodes() as (address, node):
            place = Place(str(folder / "root"), folder, environment={"RAY_ADDRESS": address})
            yield place, partial(_kill, victim=fault, node=node)
    else:
        yield Place(str(folder / "root"), folder), partial(_kill, victim=fault)


def _kill(place: Place, chance: random.Random, victim: str, node: int | None = None) -> tuple[Parts, str]:
    command = place.start()
    waited = _wait_for_moment(place, command, chance)
    pid = node if node is not None else _victim(command, victim, chance)
    before = place.committed()
    os.kill(pid, signal.SIGKILL)
    said = f"pid {pid} killed after {waited:.1f} s"
    output, errors = command.communicate(timeout=place.seconds)
    said += f", exit {command.returncode}"
    if victim in ("engine", "child", "node"):
        assert command.returncode == 0, f"{said}\n{output}{errors}"
    elif victim == "raylet" and command.returncode:
        assert "Traceback" not in errors, errors
    return before, said


def _strike_s3(
    place: Place, chance: random.Random, fault: str, server: S3Server, proxy: FaultyProxy
) -> tuple[Parts, str]:
    command = place.start()
    waited = _wait_for_moment(place, command, chance)
    before, pid = place.committed(), server.process.pid
    if fault == "s3 killed":
        server.kill()
        time.sleep(_OUTAGE_SECONDS)
        server.start()
    else:
        proxy.fault = S3_FAULTS[fault]
        time.sleep(_OUTAGE_SECONDS)
        while not proxy.met and command.poll() is None:
            time.sleep(0.1)
        proxy.fault = None
    output, errors = command.communicate(timeout=place.seconds)
    said = f"pid {pid} for {_OUTAGE_SECONDS} s after {waited:.1f} s, {proxy.met} requests met it"
    said += f", exit {command.returncode}"
    assert command.returncode == 0, f"{said}\n{output}{errors}"
    return before, said


_ON_SMALL_DISK = """
mount -t tmpfs -o size={size}k none {root}
{command}; echo $? > {scratch}/code
mkdir {scratch}/before; cp -r {root}/. {scratch}/before
mount -o remount,size=256m {root}
{command} && cp -r {root}/. {scratch}/after
"""


def _fill_disk(place: Place, chance: random.Random) -> tuple[Parts, str]:
    size = chance.randint(200, 420)  # of the 450 or so that a whole run takes
    Path(place.root).mkdir()
    command = " ".join(f"'{word}'" for word in place.command())
    script = _ON_SMALL_DISK.format(size=size, root=place.root, scratch=place.scratch, command=command)
    # In a mount namespace of its own, where anybody may mount.
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=2 * _RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    code = (place.scratch / "code").read_text().strip()
    assert code != "0", f"{size} KiB were enough"
    before = Place(f"{place.scratch}/before", place.scratch).committed()
    Path(place.root).rmdir()
    shutil.move(f"{place.scratch}/after", place.root)
    return before, f"{size} KiB of disk, exit {code}"


def _wait_for_moment(place: Place, command: subprocess.Popen[str], chance: random.Random) -> float:
    """A fifth of all faults come at any time from the start, the others while rows are made."""
    started = time.monotonic()
    early = chance.random() < 0.2
    while not early and command.poll() is None and not any("/draft/" in name for name in place.committed()):
        time.sleep(0.1)
    until = time.monotonic() + chance.uniform(0, _LAST_STRIKE)
    while command.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    return time.monotonic() - started


def _victim(command: subprocess.Popen[str], kind: str, chance: random.Random) -> int:
    """One of that kind, as soon as there is one: a trial in which nothing was struck proves nothing."""
    if kind == "driver":
        return command.pid
    names = {"engine": "ray::MapWorker", "raylet": "raylet", "child": "VLLM::EngineCore"}
    while command.poll() is None:
        found = [process.pid for process in _descendants(command.pid) if _name(process).startswith(names[kind])]
        if found:
            return chance.choice(sorted(found))
        time.sleep(0.1)
    raise AssertionError(f"the command was over before there was a {kind} to kill")


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    try:
        titled = process.name().startswith(("ray::", "VLLM::"))
        return " ".join(process.cmdline()) if titled else process.name()
    except psutil.Error:
        return ""


@contextlib.contextmanager
def _two_nodes() -> Iterator[tuple[str, int]]:
    """A cluster of two nodes; yields its address and the second raylet's pid."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    known = {process.pid for process in _descendants(os.getpid())}
    try:
        nodes.add_node(num_cpus=2)
        new = [process for process in _descendants(os.getpid()) if process.pid not in known]
        [raylet] = [process.pid for process in new if _name(process) == "raylet"]
        yield nodes.address, raylet
    finally:
        ray.shutdown()
        nodes.shutdown()


def _rows(parts: Parts) -> dict[Key, list[dict[str, object]]]:
    rows: dict[Key, list[dict[str, object]]] = defaultdict(list)
    for name, content in parts.items():
        for row in pq.read_table(pa.BufferReader(content)).to_pylist():
            rows[name.split("/")[1], row["prompt_id"], row["sample"]].append(row)
    return rows
