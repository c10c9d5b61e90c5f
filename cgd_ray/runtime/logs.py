"""One structured logger, and the tail of an engine's log for the error that needs it."""

import contextlib
import logging
import os
import platform
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import structlog

from cgd_ray.redaction import redact, redact_event

_QUIET = {
    "bitsandbytes": logging.ERROR,  # at each import: missing kernels for a CPU
    "httpx": logging.WARNING,
    "ray.data": logging.ERROR,
    "ray.serve": logging.WARNING,
    "ray.train": logging.ERROR,
    # Logged at every start: token authentication is on, which is intended.
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}


def configure_logging() -> None:
    """Log lines on standard error: a time, the event, its values, without secrets."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            redact_event,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def redact_uncaught() -> None:
    """Mask secrets in the traceback of an internal error, which may quote output of other programs."""
    sys.excepthook = _show_uncaught


def _show_uncaught(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    show_traceback(error)


def show_traceback(error: BaseException) -> None:
    """Write an error's traceback to standard error."""
    sys.stderr.write(redact("".join(traceback.format_exception(error))))


def quiet_libraries() -> None:
    """Keep log lines of libraries off the terminal. Call it again after Serve's start, which resets it."""
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def quiet_vllm() -> Iterator[None]:
    """Hide vLLM's terminal output at import: it lists what it did not find, even if this process does not run it."""
    before = os.environ.get("VLLM_LOGGING_LEVEL")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_LOGGING_LEVEL"]
        else:
            os.environ["VLLM_LOGGING_LEVEL"] = before


def own_log_tail(lines: int = 25) -> str:
    """The last lines of the file that this process's standard error is written to; empty if it is no file.

    Ray sends the output of its workers, and so of the engine cores below them, to files.
    """
    target = _own_log()
    if target is None:
        return ""
    with target.open(errors="replace") as file:
        return redact("".join(deque(file, maxlen=lines)))


def describe_own_log() -> str:
    """Location of this process's standard error."""
    return f"{_own_log() or 'standard error'} on {platform.node()}"


def _own_log() -> Path | None:
    target = Path("/proc/self/fd/2").readlink() if sys.platform == "linux" else Path()
    return target if target.is_file() else None
