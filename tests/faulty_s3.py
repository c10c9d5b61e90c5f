"""A proxy before the S3 server that makes a network of it: refusals, delays and connections cut in the middle.

It can also stand for a role without the right to delete.
"""

import asyncio
import contextlib
import random
import re
import threading
from collections.abc import Iterator
from typing import Literal

from tests.background import serving

Fault = Literal["503", "slow", "torn"]

_SLOW_SECONDS = 2.0
_SHARE = 0.3  # of the requests that a fault meets; of all that come, the store must take some
_REFUSAL = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 93\r\n\r\n"
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce.</Message></Error>   "
)


class FaultyProxy:
    """Passes bytes on between clients and a server on this host, except while there is a fault."""

    def __init__(self, server: int, seed: int) -> None:
        self.fault: Fault | None = None
        self.port = 0
        self.met = 0
        """Requests that met the fault."""
        self.keeps_all = False
        """Whether bulk deletes are answered as S3 does where no key may be deleted: with success, and errors by key."""
        self._server = server
        self._random = random.Random(seed)
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, ready: threading.Event) -> None:
        listener = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        ready.set()
        try:
            async with listener:
                await listener.serve_forever()
        finally:
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if this := asyncio.current_task():
            self._connections.add(this)
            this.add_done_callback(self._connections.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server, to_server = await asyncio.open_connection("127.0.0.1", self._server)
            back = asyncio.create_task(_pass_on(server, to_client))
            try:
                while sent := await client.read(2**16):
                    if self.keeps_all and re.match(rb"POST [^ ]*\?delete", sent):
                        to_client.write(await _refuse_each(sent, client))
                    elif not await self._one(sent, to_server, to_client):
                        break
            finally:
                back.cancel()
                to_server.close()
        to_client.close()

    async def _one(self, sent: bytes, to_server: asyncio.StreamWriter, to_client: asyncio.StreamWriter) -> bool:
        """Pass a piece on; whether the connection lives."""
        meets = self.fault is not None and self._random.random() < _SHARE
        self.met += meets
        if meets and self.fault == "503":
            to_client.write(_REFUSAL)
            await to_client.drain()
            return False
        if meets and self.fault == "torn":
            to_server.write(sent[: len(sent) // 2])
            await to_server.drain()
            to_server.transport.abort()
            to_client.transport.abort()
            return False
        if meets:
            await asyncio.sleep(self._random.uniform(0, _SLOW_SECONDS))
        to_server.write(sent)
        await to_server.drain()
        return True


@contextlib.contextmanager
def faulty_proxy(server: int, seed: int) -> Iterator[FaultyProxy]:
    """A proxy on a thread of its own, for as long as the block takes."""
    proxy = FaultyProxy(server, seed)
    with serving(proxy.serve):
        yield proxy


async def _refuse_each(sent: bytes, client: asyncio.StreamReader) -> bytes:
    while b"</Delete>" not in sent:
        sent += await client.read(2**16)
    keys = re.findall(rb"<Key>(.*?)</Key>", sent)
    errors = b"".join(b"<Error><Key>%b</Key><Code>AccessDenied</Code></Error>" % key for key in keys)
    body = b"<?xml version='1.0'?><DeleteResult>%b</DeleteResult>" % errors
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while received := await reader.read(2**16):
            writer.write(received)
            await writer.drain()
        writer.close()
