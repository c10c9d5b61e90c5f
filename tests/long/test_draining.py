"""A replica that is no longer needed finishes its answers: real Serve, two real engines, streams over HTTP."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import ray
from ray import serve

from cgd_ray.serving.app import build
from cgd_ray.serving.keys import digest_of, new_key
from tests.servers import free_port

pytestmark = pytest.mark.timeout(1800)
TOKENS = 900
KEY = new_key()


def replicas() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "ServeReplica:default:LLMServer" in " ".join(process.cmdline())]


def deploy(student: Path, count: int) -> None:
    counts = {"min_replicas": count, "max_replicas": count, "max_ongoing_requests": 1}
    engine = {"model": str(student), "cpus": 1, "max_model_len": 1024}
    serve.run(build({**engine, **counts, "key_digests": [digest_of(KEY)]}), route_prefix="/")


@pytest.fixture
def url(student_dir: Path) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="cgd-serve-"))
    ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=str(folder), object_store_memory=2**28)
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(student_dir, 2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def test_streams_go_on_while_their_replica_is_taken_away(url: str, student_dir: Path) -> None:
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=900)

    def stream() -> Any:
        options: dict[str, Any] = {"max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
        messages = [{"role": "user", "content": "Count to a thousand."}]
        return client.chat.completions.create(
            model="student",
            messages=messages,  # type: ignore[arg-type]
            extra_body={"ignore_eos": True},
            **options,
        )

    assert len(replicas()) == 2
    streams = [stream(), stream()]
    for one in streams:
        next(one)  # each has begun, and a replica takes one at a time
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(lambda chunks: (list(chunks)[-1], time.monotonic()), one) for one in streams]
        begun = time.monotonic()
        deploy(student_dir, 1)
        answers = [end.result() for end in ends]
    assert [chunk.usage.completion_tokens for chunk, _ in answers] == [TOKENS, TOKENS]
    assert min(ended for _, ended in answers) - begun > 25  # Serve's own patience is 20 s
    deadline = time.monotonic() + 120
    while len(replicas()) > 1 and time.monotonic() < deadline:
        time.sleep(1)
    assert len(replicas()) == 1
