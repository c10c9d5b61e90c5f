"""The served student on CPU: real Serve, vLLM and S3, asked with the `openai` client. One start for all tests."""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import ray
from ray import serve
from transformers import AutoTokenizer

from cgd_ray.prompts.conversation import with_history
from cgd_ray.training.encode import ChatEncoder
from serving.app import build
from tests.servers import free_port, is_engine, wait_for_port

MAX_MODEL_LEN = 1024
QUESTIONS = [
    "What is the capital of France?",
    "Tom has 3 apples and buys $2^2$ more.\n\nHow many are there?\n",
    "  Wie viele Äpfel? 🍎  ",
]


@dataclass(frozen=True)
class Endpoint:
    url: str
    logs: Path
    """Ray's log folder."""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def chat(self, content: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": content}]
        options = {"model": "student", "temperature": 0, "max_tokens": 32, **options}
        return self.client.chat.completions.create(messages=messages, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def bucket(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The student in an S3 bucket: arguments for `build`, and the keys in the environment."""
    root = tmp_path_factory.mktemp("s3")
    student = root / "models" / "student"
    shutil.copytree(student_dir, student)
    # Sampling defaults that nobody asked for, as instruct models bring them: they must have no effect.
    (student / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.01, "top_k": 1}))
    port, key, secret = free_port(), secrets.token_hex(8), secrets.token_hex(8)
    rclone = Path(sys.executable).with_name("rclone")
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
        environment.setenv("CGD_CACHE_DIR", str(root / "cache"))
        server = subprocess.Popen([rclone, "serve", "s3", *address, root], stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            yield {"model": "s3://models/student", "endpoint_url": f"http://127.0.0.1:{port}"}
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture(scope="module")
def endpoint(bucket: dict[str, Any]) -> Iterator[Endpoint]:
    """The student, served; at the end, every process that this started must be gone."""
    # pytest's own folders are too deep for the paths of Ray's sockets
    folder = Path(tempfile.mkdtemp(prefix="cgd-serve-"))
    before = set(psutil.Process().children(recursive=True))
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, _temp_dir=str(folder), object_store_memory=200 * 2**20
    )
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({**bucket, "cpus": 2, "max_model_len": MAX_MODEL_LEN}), route_prefix="/")
        yield Endpoint(f"http://127.0.0.1:{port}", folder / "session_latest" / "logs")
    finally:
        ours = set(psutil.Process().children(recursive=True)) - before
        serve.shutdown()
        ray.shutdown()
        _, left = psutil.wait_procs(ours, timeout=60)
        names = [process.name() for process in left]
        for process in left:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    assert not names, f"still running after the end: {names}"


@pytest.fixture(scope="module")
def encoder(student_dir: Path) -> ChatEncoder:
    return ChatEncoder(AutoTokenizer.from_pretrained(student_dir), {})


def test_models_lists_the_student(endpoint: Endpoint) -> None:
    assert [model.id for model in endpoint.client.models.list()] == ["student"]
    assert endpoint.client.models.retrieve("student").id == "student"


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompts_are_encoded_as_in_training(endpoint: Endpoint, encoder: ChatEncoder, question: str) -> None:
    answer = endpoint.chat(question, max_tokens=1, extra_body={"return_token_ids": True})
    assert answer.prompt_token_ids == encoder.prompt_ids(with_history(question))
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)


def test_an_answer_ends_where_training_ends_it(endpoint: Endpoint, encoder: ChatEncoder) -> None:
    # Each token of this answer leads by a logit or more: what leads by a tenth depends on how the processor rounds.
    answer = endpoint.chat("Name the capital of France.", extra_body={"return_token_ids": True})
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert "Paris" in choice.message.content
    assert choice.token_ids[-1] == encoder.end_of_turn


def test_a_cut_answer_says_so(endpoint: Endpoint) -> None:
    answer = endpoint.chat("Tell me a long story.", max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_streaming_gives_the_same_text(endpoint: Endpoint) -> None:
    whole = endpoint.chat("Name three colours.", max_tokens=64)
    chunks = [chunk for chunk in endpoint.chat("Name three colours.", max_tokens=64, stream=True) if chunk.choices]
    assert len(chunks) > 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_continue_the_text(endpoint: Endpoint) -> None:
    client = endpoint.client
    options: dict[str, Any] = {"model": "student", "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**options)
    assert whole.usage.completion_tokens == 8
    streamed = "".join(part.choices[0].text for part in client.completions.create(**options, stream=True))
    assert streamed == whole.choices[0].text != ""


def test_sampling_defaults_of_the_model_have_no_effect(endpoint: Endpoint) -> None:
    # generation_config.json asks for top_k 1, under which all answers would be the same
    answers = [endpoint.chat("Write a random word.", temperature=1, seed=seed) for seed in range(4)]
    assert len({answer.choices[0].message.content for answer in answers}) > 1


def test_unknown_model_is_not_found(endpoint: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError):
        endpoint.chat("Hello", model="teacher")


def test_prompts_stay_out_of_the_logs(endpoint: Endpoint) -> None:
    marker = f"zq{secrets.token_hex(8)}"
    endpoint.chat(marker)
    list(endpoint.chat(marker, stream=True))
    endpoint.client.completions.create(model="student", prompt=marker, max_tokens=4)
    for content, options in (
        (marker, {"model": "teacher"}),
        (marker, {"temperature": -5}),
        (f"{marker} " * MAX_MODEL_LEN, {}),
    ):
        with pytest.raises(openai.APIStatusError):
            endpoint.chat(content, **options)
    with pytest.raises(openai.BadRequestError):
        endpoint.client.chat.completions.create(model="student", messages=marker)  # type: ignore[call-overload]
    time.sleep(3)  # loggers flush behind the answers
    texts = {path: path.read_text(errors="replace") for path in endpoint.logs.rglob("*") if path.is_file()}
    assert any("/v1/chat/completions" in text for text in texts.values())  # these are the logs that we mean
    assert not [str(path) for path, text in texts.items() if marker in text]


@pytest.mark.usefixtures("endpoint")
def test_the_engine_is_among_the_processes_that_must_end() -> None:
    # Else the check at the end of the fixture `endpoint` would prove nothing.
    below = psutil.Process().children(recursive=True)
    assert any(is_engine(process) for process in below)
    assert len([process for process in below if "ServeReplica" in " ".join(process.cmdline())]) == 2
