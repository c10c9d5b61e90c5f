"""Waiting for Ray in a way that signals can end."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def interruptibly(
    call: Callable[[], T], *, on_interrupt: Callable[[], object] | None = None, grace_seconds: float = 20.0
) -> T:
    """Make a long, blocking call on another thread, and return or raise what it does.

    An exception that a signal handler raises inside one of Ray's calls comes out only when the call returns, hours
    later, or as a SystemError. Here it comes out at once; the call is left to end with the Ray session.

    Args:
        call: what to wait for.
        on_interrupt: asks the call to end; it is then given time to, which a second signal cuts short.
        grace_seconds: that time.
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
        done.wait()  # not Thread.join, which takes a thread for ended once it was interrupted (Python 3.11)
    except BaseException:
        if on_interrupt is not None:
            on_interrupt()
            done.wait(grace_seconds)
        raise
    if errors:
        raise errors[0]
    return results[0]
