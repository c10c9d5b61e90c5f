"""Wait for Ray in a way that signals can interrupt."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def interruptibly(
    call: Callable[[], T], *, on_interrupt: Callable[[], object] | None = None, grace_seconds: float = 20.0
) -> T:
    """Make a long, blocking call on another thread, and return its result or raise its exception.

    An exception that a signal handler raises inside one of Ray's calls is raised only when the call returns, hours
    later, or as a SystemError. This function raises it at once; the call ends with the Ray session.

    Args:
        call: the call to wait for.
        on_interrupt: requests the end of the call, which then has `grace_seconds`; a second signal ends it at once.
        grace_seconds: seconds that the call has to end.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="ray call", daemon=True).start()
    try:
        done.wait()  # not Thread.join, which treats a thread as ended once it was interrupted (Python 3.11)
    except BaseException:
        if on_interrupt is not None:
            on_interrupt()
            done.wait(grace_seconds)
        raise
    if errors:
        raise errors[0]
    return results[0]
