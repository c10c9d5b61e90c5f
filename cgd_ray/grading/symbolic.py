"""Compare answers that need algebra: a child process checks them, each within a bounded amount of CPU time.

Run as `python -m cgd_ray.grading.symbolic`, it reads pairs of answers, one JSON array per line, and writes 1, 0 or
`late` for each. Only a separate process is a sure bound: a power tower keeps the interpreter inside one call, where
neither another thread nor a Python signal handler can run. A first timer raises an error, which keeps the process for
the next pair. The kernel's default action on a second timer needs no handler. Both count CPU time, so that a busy
machine changes no verdict.
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

CPU_SECONDS = 0.5
"""CPU time of one comparison; ordinary ones take milliseconds."""

_KILL_SECONDS = 0.9
"""CPU time after which the kernel ends a comparison that runs no handler, such as a power tower."""

MEMORY_BYTES = 4 * 2**30
"""Memory limit of the child, which needs about 100 MB."""

_READY = "ready\n"
_NEAR = 1e-6
_FIRST = (r"x \in [0,1)", r"\begin{pmatrix}1\\2\end{pmatrix}", r"\sqrt{2}+\infty")


class SymbolicChecker:
    """Compares answers in a child process, started on first use and restarted if it ends.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._is_new = False  # its ready line was not read yet

    def equal(self, gold: str, prediction: str) -> bool:
        """Whether the prediction is mathematically equal to the gold answer; False if the time limit is exceeded.

        Raises:
            CgdError: the child process cannot be started.
        """
        with self._lock:
            # A child killed by anything but its timer gives no verdict: try once more.
            for _ in range(2):
                reply = self._ask(json.dumps([gold, prediction]))
                if reply in ("0\n", "1\n"):
                    return reply == "1\n"
                if reply:
                    break
                was_late = self._stop() == -signal.SIGVTALRM
                self._child = self._start()  # now, so that the next comparison need not wait for it
                if was_late:
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
        if self._is_new and child.stdout.readline() != _READY:
            self._stop()
            raise CgdError(f"grading: the answer checker did not start (exit code {child.returncode}), see above")
        self._is_new = False
        try:
            child.stdin.write(f"{request}\n")
            child.stdin.flush()
            return child.stdout.readline()
        except BrokenPipeError:
            return ""

    def _start(self) -> subprocess.Popen[str]:
        # Ray puts a job's code on sys.path, not always into PYTHONPATH, and the child must find this module.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._is_new = True
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "cgd_ray.grading.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )

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
    # Takes half a second, only in the child.
    import math_verify

    latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    for answer in _FIRST:  # the first comparisons import modules, which exceeds the time limit
        parsed = math_verify.parse(rf"\boxed{{{answer}}}", extraction_config=latex, parsing_timeout=None)
        math_verify.verify(parsed, parsed, strict=True, timeout_seconds=None)
    replies.write(_READY)
    replies.flush()
    for request in requests:
        # Both timers count CPU time; when ITIMER_VIRTUAL expires, the kernel ends the process.
        signal.setitimer(signal.ITIMER_VIRTUAL, _KILL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        same: bool | None
        try:
            gold, prediction = (
                math_verify.parse(rf"\boxed{{{answer}}}", extraction_config=latex, parsing_timeout=None)
                for answer in json.loads(request)
            )
            same = bool(math_verify.verify(gold, prediction, strict=True, timeout_seconds=None))
            same = same and _are_near(gold, prediction)
        except _STUMBLES:
            same = False  # an answer that algebra cannot process is wrong
        except _TooLateError:
            same = None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        replies.write({True: "1\n", False: "0\n", None: "late\n"}[same])
        replies.flush()


_STUMBLES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


class _TooLateError(BaseException):
    """The time limit is exceeded; a BaseException, so that no `except Exception` catches it."""


def _end_comparison(*_: object) -> None:
    raise _TooLateError


def _are_near(gold: list[object], prediction: list[object]) -> bool:
    """Whether two numbers are equal in relative terms: math-verify rounds to six places, which makes small ones 0."""
    from sympy import Abs, Expr, N

    left, right = (next(iter(parsed), None) for parsed in (gold, prediction))
    if not (isinstance(left, Expr) and isinstance(right, Expr)) or left.free_symbols or right.free_symbols:
        return True
    return left == right or bool(N(Abs(left - right), 20) <= _NEAR * N(Abs(left), 20))


def main() -> None:
    """Serve the parent on the standard streams, within the limits."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGPROF, _end_comparison)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
