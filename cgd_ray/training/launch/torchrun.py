"""Run the rank's loop under plain torchrun, without Ray: for GPUs of a scheduler (Slurm) or of a single machine.

    torchrun --standalone --nproc-per-node 8 -m cgd_ray.training.launch.torchrun JOB

JOB is ROOT/runs/NAME/training/IDENTITY/job.json.

`cgd run` with `training.launcher=torchrun` writes the job and prints this command; run again, it continues with the
student. The same torchrun command resumes, on any number of ranks. Ctrl-C and SIGTERM write a checkpoint first.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import NoReturn

import structlog
import torch

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.redaction import redact
from cgd_ray.runtime.logs import configure_logging, quiet_libraries, redact_uncaught
from cgd_ray.storage.filesystem import open_filesystem, store_errors
from cgd_ray.storage.lease import hold_lease
from cgd_ray.training.distributed import host_group, join_ranks, raise_on_all_ranks
from cgd_ray.training.job import OUTCOME, GpuMemoryError, RankJob, RankOutcome, StepReport

log = structlog.get_logger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a scheduler's stop, Ctrl-C, a closed terminal
_FIRST_RANK_S = 20


def main() -> None:
    """Train the job whose file or `s3://` URL is the only argument."""
    if len(sys.argv) != 2 or "RANK" not in os.environ:
        sys.exit("usage: torchrun --standalone --nproc-per-node N -m cgd_ray.training.launch.torchrun JOB.json")
    configure_logging()
    redact_uncaught()
    quiet_libraries()
    stores: tuple[type[Exception], ...] = store_errors()
    try:
        _train(sys.argv[1])
    except CgdError as error:
        _end(str(error), error.exit_code, of_all=not isinstance(error, GpuMemoryError))
    except stores as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _end(f"{cause}. Fix: check that the storage is there, and its keys", 1)


def _end(reason: str, code: int, *, of_all: bool = True) -> NoReturn:
    """Exit with an error, printed only once if all ranks end with it.

    torchrun ends all ranks as soon as one has exited. The others therefore wait for the first one, which may be slower,
    and print the error themselves if it does not exit.
    """
    if of_all and not _is_first():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_FIRST_RANK_S)
    sys.stderr.write(f"error: {redact(reason)}\n")
    sys.exit(code)


def _train(url: str) -> None:
    job = _read_job(url)
    os.environ.setdefault("DS_ACCELERATOR", job.device)
    from cgd_ray.training.loop.trainer import train_rank  # imports DeepSpeed, which selects its accelerator on import

    with _alone(job):
        outcome = train_rank(job, _Reporter())
        if _is_first():
            _write(job, outcome)
    if _is_first():
        log.info("student exported", student=job.encoded.store.url(job.student), steps=outcome.progress.step)


@contextlib.contextmanager
def _alone(job: RankJob) -> Iterator[None]:
    """Hold the run's lease, as `cgd run` does: no two trainings write its student.

    Raises:
        RefusedError: another process holds the lease.
    """
    join_ranks(job)
    refusal = None
    with contextlib.ExitStack() as stack:
        try:
            if _is_first():
                stack.enter_context(hold_lease(job.encoded.store, f"runs/{job.name}", wait=False))
        except CgdError as error:
            refusal = str(error)
        raise_on_all_ranks(refusal, host_group())
        yield


def _read_job(url: str) -> RankJob:
    ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        content = open_filesystem(url, StorageSection()).cat_file(url)
        return RankJob.from_json(content, device, threads=max(1, len(os.sched_getaffinity(0)) // ranks))
    except (OSError, KeyError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"{url}: not a job of this version ({cause}). Fix: run `cgd run` with training.launcher=torchrun, which "
            "writes it"
        ) from error


def _write(job: RankJob, outcome: RankOutcome) -> None:
    content = {"identity": job.identity, **asdict(outcome)}
    job.encoded.store.write(f"{job.student}/{OUTCOME}", json.dumps(content, indent=1).encode())


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


class _Reporter:
    """Logs each step from rank 0; requests a stop after a signal, which torchrun passes on to every rank."""

    def __init__(self) -> None:
        self._must_stop = False
        for number in _SIGNALS:
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._must_stop = True

    def __call__(self, step: StepReport) -> bool:
        """Log a step; return whether one of `_SIGNALS` was received."""
        if _is_first():
            log.info("training", **step.shown())
        return self._must_stop


if __name__ == "__main__":
    main()
