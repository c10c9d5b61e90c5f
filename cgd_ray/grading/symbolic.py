"""Answers that need algebra: a child process that checks them, each within a bounded amount of CPU time.

Run as `python -m cgd_ray.grading.symbolic` it reads pairs of answers, one JSON array a line, and writes 1 or
0 for each. A process of its own is the only sure bound: a power tower keeps the interpreter inside one call,
where neither another thread nor a signal handler of Python's gets its turn. The kernel's default action on a
profiling timer needs no handler; since that timer counts CPU time, a busy machine changes no verdict.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TextIO

import structlog

from cgd_ray.errors import CgdError

CPU_SECONDS = 3.0
"""What one comparison may cost; ordinary ones take milliseconds."""

MEMORY_BYTES = 4 * 2**30
"""What the child may hold; it needs about 100 MB."""

_READY = "ready\n"


class SymbolicChecker:
    """Compares answers in a child process: started on first use, and anew after an answer that was given up.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def equal(self, gold: str, prediction: str) -> bool:
        """Whether the prediction is mathematically the gold answer; False where time is too short to tell.

        Raises:
            CgdError: the child process cannot be started.
        """
        with self._lock:
            # A child that something else killed says nothing about the answer: ask once more.
            for _ in range(2):
                reply = self._ask(json.dumps([gold, prediction]))
                if reply:
                    return reply == "1\n"
                if self._stop() == -signal.SIGPROF:
                    break
        log = structlog.get_logger(__name__)
        log.warning("answer_given_up", prediction=prediction, cpu_seconds=CPU_SECONDS)
        return False

    def close(self) -> None:
        """End the child process, if there is one."""
        with self._lock:
            self._stop()

    def _ask(self, request: str) -> str:
        child = self._child or self._start()
        self._child = child
        if child.stdin is None or child.stdout is None:
            raise CgdError("grading: the answer checker has no pipes")
        try:
            child.stdin.write(f"{request}\n")
            child.stdin.flush()
            return child.stdout.readline()
        except BrokenPipeError:
            return ""

    def _start(self) -> subprocess.Popen[str]:
        # Ray puts a job's code on sys.path, not always into PYTHONPATH, and the child must find this module.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "cgd_ray.grading.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        if child.stdout is None or child.stdout.readline() != _READY:
            with child:
                child.kill()
            raise CgdError(f"grading: the answer checker did not start (exit code {child.returncode}), see above")
        return child

    def _stop(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        # Leaving the block closes the pipes, which ends the child, and waits for it.
        with suppress(BrokenPipeError), child:
            pass
        return child.returncode


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until there are no more."""
    # Half a second that only the child pays.
    import math_verify

    latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    replies.write(_READY)
    replies.flush()
    for request in requests:
        # The clock runs on CPU time; running out of it ends the process here and now.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        gold, prediction = (
            math_verify.parse(rf"\boxed{{{answer}}}", extraction_config=latex, parsing_timeout=None)
            for answer in json.loads(request)
        )
        same = bool(math_verify.verify(gold, prediction, strict=True, timeout_seconds=None))
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write("1\n" if same else "0\n")
        replies.flush()


def main() -> None:
    """Serve the parent on the standard streams, within the limits."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
