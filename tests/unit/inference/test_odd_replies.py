"""Replies that no specification allows: each is the right text or one failed row, and is charged what it may cost."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from cgd_ray.errors import ConfigError
from cgd_ray.execution.results import result_row
from cgd_ray.inference.base import (
    CeilingError,
    Completion,
    CompletionError,
    Decoding,
    PromptTooLongError,
    Request,
    is_cut_off,
    one_line,
)
from cgd_ray.inference.openai.engine import OpenAIEngine, check_endpoint
from cgd_ray.inference.openai.errors import RetryableError, retryable_error, retryable_reply
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.inference.openai.replies import error_in
from cgd_ray.inference.vllm.engine import _one_line
from cgd_ray.prompts.conversation import Turn

PRICES = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}
MOST = 100 + len("hi") + 16  # of REQUEST: the tokens asked for, and a token for each byte and for the template
USED = 10 + 5
REQUEST = Request("k", "r", (Turn("user", "hi"),), Decoding(100, 0.0, 1.0, 1))
DEEP = b'{"a":' * 100_000
KEY = "sk-planted-0123456789abcdef"


@dataclass
class Endpoint:
    """Answers every request with one body, and a list of models with another."""

    reply: bytes = b"{}"
    status: int = 200
    kind: str = "application/json"
    models: bytes | None = None
    url: str = ""
    asked: int = 0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    told = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.asked += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(told.status, told.reply, told.kind)

        def do_GET(self) -> None:
            self._say(200 if told.models is not None else 404, told.models or b"", "application/json")

        def _say(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield told
    server.shutdown()
    server.server_close()


def body(*, message: dict[str, Any] | None = None, choice: dict[str, Any] | None = None, **fields: Any) -> bytes:
    said = {"role": "assistant", "content": "hello", **(message or {})}
    told = {"index": 0, "finish_reason": "stop", "message": said, **(choice or {})}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [told], "usage": usage, **fields}).encode()


def ask(endpoint: Endpoint, reply: bytes, status: int = 200) -> tuple[Completion | BaseException, float]:
    """What one try of a row makes, and what it is charged."""
    endpoint.reply, endpoint.status = reply, status
    options = OpenAIOptions(
        type="openai", model="m", base_url=endpoint.url, api_key_env=None, max_retries=0, timeout_s=5, **PRICES
    )

    async def scenario() -> tuple[Completion | BaseException, float]:
        engine = OpenAIEngine(options)
        await engine.start()
        [made] = await asyncio.gather(engine.complete(REQUEST), return_exceptions=True)
        await engine.close()
        return made, round(engine._budget._spent, 6)

    return asyncio.run(scenario())


def require_failed(made: Completion | BaseException, said: str) -> None:
    assert type(made) is CompletionError
    assert said in str(made)
    assert "\n" not in str(made)


@pytest.mark.parametrize("reason", [{"type": "stop"}, ["stop"], "null", "None", None, "<|im_end|>"])
def test_an_odd_reason_to_end_leaves_the_text(endpoint: Endpoint, reason: object) -> None:
    made, spent = ask(endpoint, body(choice={"finish_reason": reason}))
    assert isinstance(made, Completion)
    assert (made.text, made.truncated, spent) == ("hello", False, USED)


@pytest.mark.parametrize("reason", [1, True, [], {}, [1], ["stop", "stop"], {"type": 3}, 1.5])
def test_a_reason_of_another_type_fails_the_row(endpoint: Endpoint, reason: object) -> None:
    made, spent = ask(endpoint, body(choice={"finish_reason": reason}))
    require_failed(made, f"the completion ended with {reason!r}")
    assert spent == USED  # as the endpoint says


@pytest.mark.parametrize(
    ("reason", "is_cut"),
    [
        *(
            (reason, False)
            for reason in ("<|im_end|>", "<|eot_id|>", "</s>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "finished")
        ),
        *((reason, False) for reason in ("done", "normal", "stopped", "FINISH_REASON_STOP", "endTurn", "STOP")),
        *((reason, True) for reason in ("FINISH_REASON_MAX_TOKENS", "maxTokens", "length", "sensitive", "blocked")),
        *((reason, True) for reason in ("guardrail_intervened", "content-filter", "CONTENT_FILTERED", "refusal")),
        *((reason, True) for reason in ("PROHIBITED_CONTENT", "BLOCKLIST", "FINISH_REASON_SAFETY", "IMAGE_SAFETY")),
    ],
)
def test_reasons_to_end_are_known_in_any_spelling(reason: str, *, is_cut: bool) -> None:
    assert is_cut_off(reason) is is_cut


@pytest.mark.parametrize("reason", ["abort", "error", "tool_calls", "", None, "FINISH_REASON_UNSPECIFIED", 7])
def test_a_completion_that_did_not_end_is_none(reason: object) -> None:
    with pytest.raises(CompletionError, match="the completion ended with "):
        is_cut_off(reason)


@pytest.mark.parametrize("details", ["none", [{"cached_tokens": 3}], 7, True, {"cached_tokens": "x"}, {}])
def test_odd_details_of_the_usage_leave_the_text(endpoint: Endpoint, details: object) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": details}
    made, spent = ask(endpoint, body(usage=usage))
    assert made == Completion("hello", truncated=False, finish_reason="stop", prompt_tokens=10, completion_tokens=5)
    assert spent == USED


@pytest.mark.parametrize(("cached", "count"), [(3, 3), ("3", 3), (3.0, 3), (3.5, None), (-3, None), (2**40, None)])
def test_cached_tokens_are_what_a_table_holds(endpoint: Endpoint, cached: object, count: int | None) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": cached}}
    made, _ = ask(endpoint, body(usage=usage))
    assert isinstance(made, Completion)
    assert made.cached_tokens == count


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [(-1, -1), (10, -1), (0, 0), (10, 0), (True, True), (10, True), (False, 5), (2**40, 5), (10, None), ([1], 5)],
)
def test_a_usage_that_cannot_be_true_is_none(endpoint: Endpoint, prompt: object, completion: object) -> None:
    """As a missing one: the row fails, for its tokens count in filters and plans, and is charged the maximum."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 1}
    made, spent = ask(endpoint, body(usage=usage))
    require_failed(made, "no message or no usage")
    assert spent == MOST


@pytest.mark.parametrize("usage", ["many", [1, 2], 7, None, {}])
def test_a_usage_of_another_type_is_none(endpoint: Endpoint, usage: object) -> None:
    made, spent = ask(endpoint, body(usage=usage))
    require_failed(made, "no message or no usage")
    assert spent == MOST
    assert endpoint.asked == 1


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "10", "completion_tokens": 5.0}, {"prompt_tokens": 14, "completion_tokens": 1}]
)
def test_a_usage_in_another_spelling_counts(endpoint: Endpoint, usage: dict[str, Any]) -> None:
    made, spent = ask(endpoint, body(usage=usage))
    assert isinstance(made, Completion)
    assert (made.prompt_tokens + made.completion_tokens, spent) == (USED, USED)


@pytest.mark.parametrize("refusal", [{"a": 1}, 5, ["no"], "no"])
def test_a_refusal_of_any_type_fails_the_row(endpoint: Endpoint, refusal: object) -> None:
    made, spent = ask(endpoint, body(message={"content": None, "refusal": refusal}))
    require_failed(made, f"the model refuses: {refusal}")
    assert spent == USED


@pytest.mark.parametrize(
    "reply",
    [
        DEEP,
        b'{"choices": ' + b"[" * 100_000,
        *(b'{"choices": ' + b"[" * depth + b"]" * depth + b"}" for depth in (300, 600, 900, 990)),
        body()[:-1],
        b'{"id": "caf\xe9"}',
        b"",
        b"null",
        b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    ],
)
def test_a_body_that_cannot_be_read_fails_the_row_at_the_maximum(endpoint: Endpoint, reply: bytes) -> None:
    made, spent = ask(endpoint, reply)
    require_failed(made, "")
    assert spent == MOST


@pytest.mark.parametrize("depth", [100, 300, 600, 900, 980, 2000])
@pytest.mark.parametrize("field", [b"refusal", b"content", b"reasoning", b"audio"])
def test_a_deep_field_fails_the_row_or_leaves_the_text(endpoint: Endpoint, field: bytes, depth: int) -> None:
    reply = body().replace(b'"content"', b'"' + field + b'": ' + b"[" * depth + b"]" * depth + b', "content"')
    made, spent = ask(endpoint, reply.replace(b'"hello"', b"null") if field == b"refusal" else reply)
    assert isinstance(made, Completion | CompletionError)
    assert spent in (USED, MOST)


def test_a_refused_request_with_a_deep_body_costs_nothing(endpoint: Endpoint) -> None:
    made, spent = ask(endpoint, DEEP, status=400)
    require_failed(made, "Error code: 400")
    assert spent == 0


def test_an_error_that_nobody_foresaw_fails_the_row_at_the_maximum(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError(KEY)

    monkeypatch.setenv("OTHER_KEY", KEY)
    for name in ("completion_of", "error_in", "without_odd_usage"):
        with monkeypatch.context() as patch:
            patch.setattr(f"cgd_ray.inference.openai.engine.{name}", fail)
            made, spent = ask(endpoint, body())
        require_failed(made, "KeyError: '***'")
        assert spent == MOST


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_the_choice_with_index_0_is_the_answer(endpoint: Endpoint, order: tuple[int, int]) -> None:
    texts = ("first", "second")
    choices = [
        {"index": at, "finish_reason": "stop", "message": {"role": "assistant", "content": texts[at]}} for at in order
    ]
    made, _ = ask(endpoint, body(choices=choices))
    assert isinstance(made, Completion)
    assert made.text == "first"


@pytest.mark.parametrize(("status", "charge"), [*((s, MOST) for s in (408, 499, 504, 520, 524)), (500, 0), (429, 0)])
def test_a_request_that_was_given_up_may_have_been_worked_on(endpoint: Endpoint, status: int, charge: int) -> None:
    made, spent = ask(endpoint, b'{"error": {"message": "no"}}', status)
    assert (type(made), spent) == (CompletionError, charge)
    if status != 429:
        made, spent = ask(endpoint, json.dumps({"error": {"code": status, "message": "no"}}).encode())
        assert (type(made), spent) == (CompletionError, charge)


def judge(fields: dict[str, Any]) -> object:
    """What an error in a body with status 200 leads to."""
    told = error_in(ChatCompletion.construct(**fields))
    assert told is not None
    try:
        return retryable_reply(told)
    except (CompletionError, CeilingError) as error:
        return error


@pytest.mark.parametrize(
    "fields",
    [
        {"code": 429, "message": "busy"},
        {"code": 429, "msg": "busy", "data": None},
        {"code": "429.0", "message": "busy"},
        {"error": {"code": 429.0, "message": "busy"}},
        {"error": {"error": {"code": 429, "message": "busy"}}},
        {"error": {"code": 429, "error": {"message": "busy"}}},
        {"error": "busy", "code": 429},
        {"error": "rate_limit_exceeded", "message": "busy"},
        {"errors": [{"message": "busy", "code": 429}]},
        {"base_resp": {"status_code": 1002, "status_msg": "busy: rate limit exceeded(RPM)"}, "choices": None},
        {"error_code": 18, "error_msg": "Open api qps request limit reached: busy"},
        {"detail": "busy: Rate limit exceeded"},
        {"status": "error", "message": "busy: too many requests"},
    ],
)
def test_a_refusal_in_other_words_slows_the_requests(fields: dict[str, Any]) -> None:
    made = judge(fields)
    assert getattr(made, "is_refusal", False), made
    assert "busy" in getattr(made, "text", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"code": 503, "message": "away"},
        {"object": "error", "code": 500, "message": "away"},
        {"errors": [{"message": "away", "code": 10000}]},
        {"base_resp": {"status_code": 1013, "status_msg": "away"}},
        {"detail": "away: Internal Server Error"},
        {"error": ["away: upstream timed out"]},
    ],
)
def test_an_outage_in_other_words_is_asked_again(fields: dict[str, Any]) -> None:
    made = judge(fields)
    assert not getattr(made, "is_refusal", True), made
    assert "away" in getattr(made, "text", "")


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        (
            {"object": "error", "code": 400, "message": "This model's maximum context length is 5"},
            PromptTooLongError,
            "5",
        ),
        ({"detail": "This model's maximum context length is 5"}, PromptTooLongError, "context length"),
        ({"code": 1261, "msg": "Prompt exceeds max length: too many tokens"}, PromptTooLongError, "exceeds"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "no"}, {"loc": ["top_p"]}]}, CompletionError, "top_p"),
        ({"success": False, "message": "no such model"}, CompletionError, "no such model"),
        ({"error": {"code": "\u00b2", "message": "odd"}}, RetryableError, "odd"),
        ({"error": True}, CompletionError, "True"),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, CeilingError, "balance"),
    ],
)
def test_an_error_in_other_words_is_shown(fields: dict[str, Any], kind: type[object], said: str) -> None:
    made = judge(fields)
    assert type(made) is kind
    assert said in str(made)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"code": 200, "message": "success", "data": {}},
        {"error": None},
        {"error": {}},
        {"detail": ""},
        {},
    ],
)
def test_a_success_without_a_completion_is_no_error_and_costs_the_maximum(
    endpoint: Endpoint, fields: dict[str, Any]
) -> None:
    assert error_in(ChatCompletion.construct(**fields)) is None
    made, spent = ask(endpoint, json.dumps(fields).encode())
    require_failed(made, "no message or no usage")
    assert spent == MOST


@pytest.mark.parametrize(
    "field", [{"error": {}}, {"base_resp": {"status_code": 0}}, {"code": 0, "msg": "fine"}, {"detail": "fine"}]
)
def test_words_beside_a_text_are_no_error(endpoint: Endpoint, field: dict[str, Any]) -> None:
    made, spent = ask(endpoint, body(**field))
    assert isinstance(made, Completion)
    assert (made.text, spent) == ("hello", USED)


UNREADABLE = [b"", b"<html>", b'{"data":[', b'{"data":[{"id":"caf\xe9"}]}', DEEP]


def options(url: str) -> OpenAIOptions:
    return OpenAIOptions(type="openai", model="m", base_url=url, api_key_env=None)


@pytest.mark.parametrize("models", UNREADABLE)
def test_a_list_of_models_that_cannot_be_read_is_none(endpoint: Endpoint, models: bytes) -> None:
    endpoint.models, endpoint.reply = models, body()
    check_endpoint(options(endpoint.url))
    assert endpoint.asked == 1


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize("reply", UNREADABLE)
def test_an_endpoint_that_answers_without_json_is_refused(endpoint: Endpoint, reply: bytes, kind: str) -> None:
    endpoint.reply, endpoint.kind = reply, kind
    with pytest.raises(ConfigError, match=r"^teacher\.engine\.base_url http\S+: a request is not .*\. Fix: ") as caught:
        check_endpoint(options(endpoint.url))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://[::1/v1", "http://\0/v1", "http://h:port/v1"])
def test_a_url_that_cannot_be_read_is_refused(url: str) -> None:
    for check in (check_endpoint, lambda settings: asyncio.run(OpenAIEngine(settings).start())):
        with pytest.raises(ConfigError, match=r"^teacher\.engine\.base_url '.*': not a URL \(.*\. Fix: "):
            check(options(url))


@pytest.mark.parametrize("cut", range(1, len(KEY)))
def test_a_key_across_the_cut_is_masked(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)
    for most, shown in (
        (500, lambda text: _one_line(RuntimeError(text))),
        (800, lambda text: str(judge({"error": {"code": 400, "message": text}}))),
        (800 - len("ValueError: "), lambda text: retryable_error(ValueError(text)).text),
        (200, lambda text: one_line(text, 200)),
    ):
        assert "sk" not in shown("y" * (most - cut) + KEY)


def test_a_key_across_the_cut_of_any_reply_is_masked(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)
    text = "y" * 190 + KEY
    for reply in (json.dumps(text).encode(), body(message={"content": None, "refusal": text})):
        made, _ = ask(endpoint, reply)
        require_failed(made, "yyy")
        assert "sk" not in str(made)
    made, _ = ask(endpoint, ("y" * 770 + KEY).encode(), status=400)
    require_failed(made, "yyy")
    assert "sk" not in str(made)


def test_a_key_across_the_cut_of_a_row_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage:
        name, model, attempt, has_verdict = "critique", "m", 0, False

        def parent_of(self, _row: object) -> str:
            return ""

    error = CompletionError("")
    error.args = ("y" * 990 + KEY,)
    monkeypatch.setenv("OTHER_KEY", KEY)
    row = result_row(Stage(), {"prompt_id": "1", "sample": 0}, error)  # type: ignore[arg-type]
    assert row["error"] == "y" * 990 + "***"
