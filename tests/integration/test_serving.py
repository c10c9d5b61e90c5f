"""The served student on CPU: real Serve, vLLM and S3, asked with the `openai` client. One start for all tests."""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import serve
from transformers import AutoTokenizer

from cgd_ray.prompts.chat_encoder import ChatEncoder
from cgd_ray.prompts.conversation import with_history
from cgd_ray.serving.app import build
from cgd_ray.serving.keys import digest_of, new_key
from tests.servers import free_port, is_engine, wait_for_port

MAX_MODEL_LEN = 1024
PLACES, QUEUE = 4, 4
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
    keys: Path

    @property
    def key(self) -> str:
        """One that is good now."""
        return self.keys.read_text().splitlines()[0]

    @property
    def client(self) -> openai.OpenAI:
        return self.client_with(self.key)

    def client_with(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **headers}
        return httpx.post(f"{self.url}{path}", content=body, headers=sent, timeout=120)

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
    port, keys = free_port(), folder / "keys"
    keys.write_text(f"{new_key()}\n")
    limits = {"keys_file": str(keys), "max_ongoing_requests": PLACES, "max_queued_requests": QUEUE}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({**bucket, **limits, "cpus": 2, "max_model_len": MAX_MODEL_LEN}), route_prefix="/")
        yield Endpoint(f"http://127.0.0.1:{port}", folder / "session_latest" / "logs", keys)
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
    odd = json.dumps({"model": "student", "prompt": {marker: float("nan")}}).encode()
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        assert endpoint.post(odd, "/v1/completions", **{"content-type": kind}).status_code == 400
    assert endpoint.post(f'{{"messages": "{marker} \\ud800"}}'.encode()).status_code == 400
    time.sleep(3)  # loggers flush behind the answers
    texts = {path: path.read_text(errors="replace") for path in endpoint.logs.rglob("*") if path.is_file()}
    assert any("/v1/chat/completions" in text for text in texts.values())  # these are the logs that we mean
    assert not [str(path) for path, text in texts.items() if marker in text]
    assert not [str(path) for path, text in texts.items() if endpoint.key in text]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in OpenAI's form, which must be all that there is."""
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/student", "/v1/nothing", "/docs", "/openapi.json", "/"])
@pytest.mark.parametrize("given", [[], ["Bearer wrong"], ["Bearer"], ["Basic {key}"], ["{key}"], ["Bearer {key}"] * 2])
def test_nothing_is_shown_without_a_key(endpoint: Endpoint, path: str, given: list[str]) -> None:
    headers = [("authorization", one.format(key=endpoint.key)) for one in given]
    response = httpx.get(f"{endpoint.url}{path}", headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_client_with_a_wrong_key_is_told_so(endpoint: Endpoint) -> None:
    with pytest.raises(openai.AuthenticationError, match="the key is not known"):
        endpoint.client_with("sk-wrong").models.list()


def test_keys_are_rotated_without_a_restart(endpoint: Endpoint) -> None:
    old, new, hashed = endpoint.key, new_key(), new_key()
    pids = {process.pid for process in psutil.Process().children(recursive=True)}
    (endpoint.keys.parent / "next").write_text(f"{new}\n# a comment\nsha256:{digest_of(hashed)}\n")
    (endpoint.keys.parent / "next").rename(endpoint.keys)
    time.sleep(1.5)
    for key in (new, hashed):
        assert endpoint.client_with(key).models.list().data
    with pytest.raises(openai.AuthenticationError):
        endpoint.client_with(old).models.list()
    assert {process.pid for process in psutil.Process().children(recursive=True)} == pids


def test_a_deleted_file_of_keys_locks_the_endpoint(endpoint: Endpoint) -> None:
    key = endpoint.key
    away = endpoint.keys.rename(endpoint.keys.parent / "away")
    time.sleep(1.5)
    with pytest.raises(openai.AuthenticationError):
        endpoint.client_with(key).models.list()
    away.rename(endpoint.keys)
    time.sleep(1.5)
    assert endpoint.client_with(key).models.list().data


def test_no_web_page_may_ask(endpoint: Endpoint) -> None:
    foreign = {"origin": "https://evil.example"}
    asked = {**foreign, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = httpx.options(f"{endpoint.url}/v1/chat/completions", headers=asked)
    shown = httpx.get(f"{endpoint.url}/v1/models", headers={**foreign, "authorization": f"Bearer {endpoint.key}"})
    assert preflight.status_code == 401
    assert shown.status_code == 200
    for response in (preflight, shown):
        assert not [name for name in response.headers if name.startswith("access-control")]


CHAT = {"model": "student", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "Field required"),
        (b"null", 400, "Field required"),
        (b'{"model": ', 400, "JSON decode error"),
        (b"[" * 20_000, 400, "error parsing the body"),
        (b"\xff\xfe", 400, "JSON decode error"),
        (CHAT | {"messages": "Hi"}, 400, "valid list"),
        (CHAT | {"messages": []}, 400, "empty conversation"),
        (CHAT | {"messages": [{"author": {"role": "user"}}]}, 400, "KeyError: 'role'"),
        (CHAT | {"use_beam_search": True, "n": 2, "length_penalty": 1e300}, 400, "OverflowError"),
        (
            CHAT | {"messages": [{"role": "user", "content": "many words " * MAX_MODEL_LEN}]},
            400,
            "maximum context length",
        ),
        (CHAT | {"max_tokens": MAX_MODEL_LEN}, 400, "requested 1024 output tokens"),
        (CHAT | {"n": PLACES + 1}, 400, f"{PLACES + 1} answers are asked for at once (n, prompt), and {PLACES} are"),
        (CHAT | {"max_tokens": float("nan")}, 400, "max_tokens"),
        (b'{"model": "student", "messages": "\\ud800"}', 400, "valid list"),
        (CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}, 400, ""),
        (CHAT | {"model": "student:adapter"}, 404, "no model 'student:adapter' here, only student"),
        (CHAT | {"model": "teacher"}, 404, "no model 'teacher' here"),
        (b"a" * (4 * 2**20 + 1), 413, "larger than 4194304 bytes"),
    ],
)
def test_what_is_malformed_is_said_in_the_clients_words(
    endpoint: Endpoint, body: bytes | dict[str, Any], status: int, said: str
) -> None:
    response = endpoint.post(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert response.status_code == status, response.text
    assert said in error_of(response)["message"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_a_body_of_another_kind_is_refused(endpoint: Endpoint, kind: str) -> None:
    response = endpoint.post(json.dumps(CHAT).encode(), **{"content-type": kind})
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_several_prompts_count_as_several_answers(endpoint: Endpoint) -> None:
    body = {"model": "student", "prompt": ["x"] * PLACES, "max_tokens": 1}
    assert endpoint.post(json.dumps(body).encode(), "/v1/completions").status_code == 200
    refused = endpoint.post(json.dumps(body | {"n": 2}).encode(), "/v1/completions")
    assert refused.status_code == 400
    assert f"{2 * PLACES} answers" in error_of(refused)["message"]
    ids = endpoint.post(json.dumps(body | {"prompt": [1] * 50}).encode(), "/v1/completions")
    assert ids.status_code == 200


def test_a_client_cannot_keep_its_place(endpoint: Endpoint) -> None:
    response = endpoint.post(json.dumps(CHAT).encode(), **{"x-request-disconnect-disabled": "?1"})
    assert response.status_code == 400
    assert "x-request-disconnect-disabled" in error_of(response)["message"]


def test_an_oversized_body_of_unknown_length_is_refused(endpoint: Endpoint) -> None:
    headers = {"authorization": f"Bearer {endpoint.key}", "content-type": "application/json"}
    parts = (b"a" * 2**16 for _ in range(100))
    response = httpx.post(f"{endpoint.url}/v1/chat/completions", content=parts, headers=headers, timeout=60)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


def ask_together(endpoint: Endpoint, count: int, gap: float = 0, **options: Any) -> list[Any]:
    """What so many clients get, errors included, each of which asks a moment after the one before it."""

    def ask(place: int) -> Any:
        time.sleep(place * gap)
        try:
            return endpoint.chat("Count to a thousand.", extra_body={"ignore_eos": True}, **options)
        except openai.OpenAIError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_four_times_the_load_is_refused_and_told_when_to_come_back(endpoint: Endpoint) -> None:
    room = PLACES + QUEUE
    answers = ask_together(endpoint, 4 * room, max_tokens=48)
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    served = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(served) + len(refused) == 4 * room, answers
    assert room <= len(served) < 4 * room
    for error in refused:
        assert error.response.headers["retry-after"] == "5"
        assert error_of(error.response)["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(endpoint: Endpoint, *, stream: bool) -> None:
    gone = ask_together(endpoint, PLACES, max_tokens=800, stream=stream, timeout=120 if stream else 3)
    for one in gone:
        if stream:
            next(one)
            one.close()
        else:
            assert isinstance(one, openai.APITimeoutError)
    time.sleep(3)
    # Were the places still taken, half of these would find the queue full. They come one by one, since Serve counts
    # what it has not yet given to a replica as waiting.
    answers = ask_together(endpoint, PLACES + QUEUE, gap=0.3, max_tokens=64)
    assert not [answer for answer in answers if isinstance(answer, Exception)]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_thousand_odd_requests_get_no_server_error(endpoint: Endpoint) -> None:
    headers = {"authorization": f"Bearer {endpoint.key}"}
    schema = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json", headers=headers)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/completions", "/v1/models"}
    seen: Counter[int] = Counter()
    for operation in operations:

        @settings(
            max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def ask(case: schemathesis.Case, known: bool) -> None:  # noqa: FBT001
            if isinstance(case.body, dict):
                case.body |= {"max_tokens": 1, "max_completion_tokens": 1}  # else all that there is room for
                if known:  # else hardly one would come further than the model's name
                    case.body |= {"model": "student"}
            answer = case.call(headers=headers, timeout=300)
            seen[answer.status_code] += 1
            assert answer.status_code < 500, answer.text

        ask()
    assert sum(seen.values()) >= 2000
    assert seen[200] > 10


@pytest.mark.usefixtures("endpoint")
def test_the_engine_is_among_the_processes_that_must_end() -> None:
    # Else the check at the end of the fixture `endpoint` would prove nothing.
    below = psutil.Process().children(recursive=True)
    assert any(is_engine(process) for process in below)
    assert len([process for process in below if "ServeReplica" in " ".join(process.cmdline())]) == 2
