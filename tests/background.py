"""Coroutines that serve on a thread of their own, for as long as a block takes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator


@contextlib.contextmanager
def serving(serve: Callable[[threading.Event], Coroutine[object, object, None]]) -> Iterator[None]:
    """Run `serve`, which sets the event once it can be asked."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    task = loop.create_task(serve(ready))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
