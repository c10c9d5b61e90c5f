"""Answers that need algebra: a child process that checks them, each within a bounded amount of CPU time.

Run as `python -m cgd_ray.grading.symbolic` it reads pairs of answers, one JSON array a line, and writes 1 or
0 for each. A process of its own is the only sure bound: a power tower keeps the interpreter inside one call,
where neither another thread nor a signal handler of Python's gets its turn. A first timer raises an error, which keeps
the process for the next pair; the kernel's default action on a second one needs no handler. Both count CPU time, so
that a busy machine changes no verdict.
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
"""What one comparison may cost; ordinary ones take milliseconds."""

_KILL_SECONDS = 0.9
"""When one ends that hears no signal: a power tower stays inside one call."""

MEMORY_BYTES = 4 * 2**30
"""What the child may hold; it needs about 100 MB."""

_READY = "ready\n"
_NEAR = 1e-6
_FIRST = (r"x \in [0,1)", r"\begin{pmatrix}1\\2\end{pmatrix}", r"\sqrt{2}+\infty")


class SymbolicChecker:
    """Compares answers in a child process: started on first use, and anew after an answer that was given up.

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._is_new = False  # it has not said yet that it is ready

    def equal(self, gold: str, prediction: str) -> bool:
        """Whether the prediction is mathematically the gold answer; False where time is too short to tell.

        Raises:
            CgdError: the child process cannot be started.
        """
        with self._lock:
            # A child that something else killed says nothing about the answer: ask once more.
            for _ in range(2):
                reply = self._ask(json.dumps([gold, prediction]))
                if reply in ("0\n", "1\n"):
                    return reply == "1\n"
                if reply:
                    break
                was_late = self._stop() == -signal.SIGVTALRM
                self._child = self._start()  # ready by the time of the next question, which need not wait for it
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
    # Half a second that only the child pays.
    import math_verify

    latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    for answer in _FIRST:  # they import what later ones need, which takes longer than a comparison may
        parsed = math_verify.parse(rf"\boxed{{{answer}}}", extraction_config=latex, parsing_timeout=None)
        math_verify.verify(parsed, parsed, strict=True, timeout_seconds=None)
    replies.write(_READY)
    replies.flush()
    for request in requests:
        # Both clocks run on CPU time; running out of the second ends the process here and now.
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
            same = False  # what algebra stumbles over is no answer
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
    """Nothing that catches exceptions on the way keeps this one."""


def _end_comparison(*_: object) -> None:
    raise _TooLateError


def _are_near(gold: list[object], prediction: list[object]) -> bool:
    """Whether two numbers are equal in proportion: math-verify rounds to six places, at which all small ones are 0."""
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
