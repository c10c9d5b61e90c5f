"""What each way to fail is charged against the ceiling; the endpoint is a real server, down to its sockets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cgd_ray.inference.base import CompletionError, Decoding, Request
from cgd_ray.inference.openai.budget import Reservation
from cgd_ray.inference.openai.engine import OpenAIEngine
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.prompts.conversation import Turn

REQUEST = Request("k", "k", (Turn("user", "What is 1 + 1?"),), Decoding(7, 0.0, 1.0, 3))
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0,'


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))


def reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def reset_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def reset_after_the_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    reset(writer)


async def close_without_a_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.close()


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await asyncio.sleep(30)


async def keep_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As gateways do that wait for a model: a blank now and then, which is valid before JSON."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(300):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def cut_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n" + BODY)
    await writer.drain()
    writer.close()


async def end_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await answer(reader, writer, "200 OK", BODY)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    await read_request(reader)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.close()


def refuse(status: str) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, status, b'{"error": {"message": "no"}}')

    return serve


@contextlib.asynccontextmanager
async def serving(serve: Serve | None) -> AsyncIterator[str]:
    """The URL of an endpoint that does this with each connection, or of a port where nobody listens."""
    if serve is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
        return

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("serve", "share"),
    [
        pytest.param(None, 0, id="refused"),
        pytest.param(reset_at_once, 1, id="reset-before"),  # nobody can tell from a request that was read
        pytest.param(reset_after_the_request, 1, id="reset-after"),
        pytest.param(close_without_a_word, 1, id="closed"),
        pytest.param(say_nothing, 1, id="timeout"),
        pytest.param(keep_alive, 1, id="keep-alive"),
        pytest.param(cut_the_body, 1, id="body-cut"),
        pytest.param(end_in_the_middle, 1, id="json-cut"),
        *(
            pytest.param(refuse(status), 0, id=status)
            for status in ("400 Bad", "401 No", "429 Slow", "500 Oh", "503 No")
        ),
    ],
)
def test_a_failure_is_charged_as_what_it_may_have_cost(serve: Serve | None, share: int) -> None:
    prices = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}

    async def scenario() -> tuple[BaseException | None, float, float]:
        async with serving(serve) as url:
            options = OpenAIOptions(
                type="openai", model="m", base_url=url, api_key_env=None, timeout_s=0.7, max_retries=0, **prices
            )
            engine = OpenAIEngine(options)
            await engine.start()
            loop = asyncio.get_running_loop()
            started = loop.time()
            [made] = await asyncio.gather(engine.complete(REQUEST), return_exceptions=True)
            seconds = loop.time() - started
            await engine.close()
            return (made if isinstance(made, BaseException) else None), engine._budget._spent, seconds

    error, spent, seconds = asyncio.run(scenario())
    assert isinstance(error, CompletionError)
    assert (
        spent == share * Reservation(OpenAIOptions(type="openai", model="m", api_key_env=None, **prices), REQUEST).most
    )
    assert seconds < 10
    if serve in (say_nothing, keep_alive):
        assert "teacher.engine.timeout_s" in str(error) or "APITimeoutError" in str(error)
