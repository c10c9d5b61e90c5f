"""The HTTP teacher against a server that answers as told: retries, limits, what counts as truncated."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from cgd_ray.inference.base import (
    CeilingError,
    Completion,
    CompletionError,
    Decoding,
    PromptTooLongError,
    Request,
    Turn,
)
from cgd_ray.inference.openai.engine import OpenAIEngine
from cgd_ray.inference.openai.options import OpenAIOptions


@dataclass
class Script:
    """Answers in turn, the last one for ever; what was asked."""

    answers: list[tuple[int, Any]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""
    retry_after: str = "0"


def answer(text: str = "fine", finish_reason: str = "stop") -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


BUSY = (429, {"error": {"message": "slow down"}})
REFUSED = (400, {"error": {"message": "too long"}})


@pytest.fixture
def script() -> Iterator[Script]:
    told = Script([answer()])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.times.append(time.monotonic())
            told.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", told.retry_after)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield told
    server.shutdown()
    server.server_close()


def ask(script: Script, count: int = 1, **options: Any) -> list[Completion | BaseException]:
    settings = OpenAIOptions(type="openai", model="m", base_url=script.url, api_key_env=None, **options)
    decoding = Decoding(max_tokens=7, temperature=0.0, top_p=1.0, seed=3, chat_template_kwargs={"thinking": False})
    request = Request("k", "k", (Turn("user", "What is 1 + 1?"),), decoding)

    async def scenario() -> list[Completion | BaseException]:
        engine = OpenAIEngine(settings)
        await engine.start()
        made = await asyncio.gather(*(engine.complete(request) for _ in range(count)), return_exceptions=True)
        await engine.close()
        return made

    return asyncio.run(scenario())


def test_a_request_says_everything_and_nothing_else(script: Script) -> None:
    (made,) = ask(script, extra_body={"top_k": 1})
    assert made == Completion("fine", truncated=False, finish_reason="stop", prompt_tokens=1000, completion_tokens=500)
    assert script.asked == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 1 + 1?"}],
            "max_tokens": 7,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 3,
            "chat_template_kwargs": {"thinking": False},
            "top_k": 1,
        }
    ]


def test_a_busy_endpoint_is_asked_again(script: Script) -> None:
    script.answers = [BUSY, BUSY, answer()]
    (made,) = ask(script, max_retries=2)
    assert isinstance(made, Completion)
    assert len(script.asked) == 3


def test_an_endpoint_that_wants_peace_for_hours_stops_the_run_at_once(script: Script) -> None:
    script.answers, script.retry_after = [BUSY], "86400"
    (made,) = ask(script)
    assert isinstance(made, CeilingError)
    assert "asks for a pause of 86400 s, longer than teacher.engine.max_wait_s 600 (" in str(made)
    assert len(script.asked) == 1


@pytest.mark.parametrize(("fault", "asked"), [(BUSY, 2), (REFUSED, 1)])
def test_what_stays_wrong_fails_the_row_with_the_endpoints_words(
    script: Script, fault: tuple[int, dict[str, Any]], asked: int
) -> None:
    script.answers = [fault]
    (made,) = ask(script, max_retries=1)
    assert isinstance(made, CompletionError)
    assert fault[1]["error"]["message"] in str(made)
    assert len(script.asked) == asked


@pytest.mark.parametrize("nonsense", [b"<html>Down for maintenance</html>", b'{"id": "1", "choi'])
def test_what_is_no_completion_is_asked_for_again(script: Script, nonsense: bytes) -> None:
    script.answers = [(200, nonsense), answer()]
    (made,) = ask(script, max_retries=1)
    assert isinstance(made, Completion)
    script.answers = [(200, nonsense)]
    (made,) = ask(script, max_retries=0)
    assert isinstance(made, CompletionError)


@pytest.mark.parametrize("missing", ["usage", "choices", "message"])
def test_an_answer_that_lacks_what_is_needed_fails_the_row(script: Script, missing: str) -> None:
    status, body = answer()
    if missing == "message":
        body["choices"][0]["message"] = None
    else:
        del body[missing]
    script.answers = [(status, body)]
    (made,) = ask(script)
    assert isinstance(made, CompletionError)
    assert "no message or no usage" in str(made)


def test_answers_that_do_not_say_what_they_cost_are_taken_to_cost_the_most(script: Script) -> None:
    status, body = answer()
    del body["usage"]
    script.answers = [(status, body)]
    most = 7 * 1.0  # completion tokens alone, at a price of a million for a million
    made = ask(script, count=9, spend_ceiling=3 * most, price_per_million_completion_tokens=1e6)
    assert len(script.asked) == 3
    assert sum(isinstance(one, CeilingError) for one in made) == 6


def test_what_waits_for_its_turn_is_not_sent_while_the_endpoint_wants_peace(script: Script) -> None:
    script.answers = [BUSY, answer()]
    ask(script, count=4, requests_per_minute=600)  # a turn each tenth of a second
    assert script.times[1] - script.times[0] > 0.2  # after a refusal nobody comes for a quarter of a second at least


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_text_that_was_cut_off_is_truncated(script: Script, reason: str) -> None:
    script.answers = [answer(finish_reason=reason)]
    (made,) = ask(script)
    assert isinstance(made, Completion)
    assert made.truncated


def test_the_spend_ceiling_stops_before_the_next_request(script: Script) -> None:
    prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 2.0}  # 0.002 a request
    made = ask(script, count=9, concurrency=1, spend_ceiling=0.005, **prices)
    assert [isinstance(one, Completion) for one in made] == [True] * 3 + [False] * 6
    assert all("spend_ceiling 0.005 is reached" in str(one) for one in made if isinstance(one, CeilingError))
    assert len(script.asked) == 3


def test_requests_keep_the_rate_limit(script: Script) -> None:
    started = time.monotonic()
    ask(script, count=16, requests_per_minute=600)
    assert time.monotonic() - started >= 1.5  # ten a second, the first at once
    assert len(script.asked) == 16


def test_a_row_that_is_refused_for_itself_is_given_up_while_others_are_served(script: Script) -> None:
    """As OpenAI refuses a request that is larger than the tokens of a minute."""
    asked: list[str] = []

    class Picky(OpenAIEngine):
        async def _send(self, request: Request) -> ChatCompletion:
            asked.append(request.row)
            await asyncio.sleep(0.001)
            if request.row == "large":
                refusal = httpx.Response(429, headers={"retry-after": "0"}, request=httpx.Request("POST", script.url))
                raise openai.RateLimitError("Request too large", response=refusal, body=None)
            return ChatCompletion.model_validate(answer()[1])

    rows = ["large", *(f"row{number}" for number in range(300))]
    requests = [Request(row, row, (), Decoding(1, 0.0, 1.0, 0)) for row in rows]
    options = OpenAIOptions(type="openai", model="m", base_url=script.url, api_key_env=None, max_retries=2)

    async def scenario() -> list[Completion | BaseException]:
        engine = Picky(options)
        return await asyncio.gather(*(engine.complete(one) for one in requests), return_exceptions=True)

    large, *others = asyncio.run(scenario())
    assert isinstance(large, CompletionError)
    assert all(isinstance(other, Completion) for other in others)
    assert asked.count("large") <= 7  # three refusals for each of two retries, and one more


def test_what_was_paid_for_a_completion_that_is_none_is_kept(script: Script) -> None:
    script.answers = [answer(finish_reason="tool_calls")]
    (made,) = ask(script)
    assert isinstance(made, CompletionError)
    assert (made.prompt_tokens, made.completion_tokens) == (1000, 500)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 2048 tokens.", "code": 400},
    ],
)
def test_a_prompt_that_the_endpoint_finds_too_long_is_not_asked_again(script: Script, error: dict[str, Any]) -> None:
    script.answers = [(400, {"error": error})]
    (made,) = ask(script)
    assert isinstance(made, PromptTooLongError)
    assert len(script.asked) == 1


def test_further_fields_may_not_raise_what_a_request_costs() -> None:
    with pytest.raises(ValidationError, match="n has a key of its own, or changes what a request costs"):
        OpenAIOptions(type="openai", model="m", extra_body={"n": 4})


def with_message(**changes: Any) -> tuple[int, dict[str, Any]]:
    status, body = answer()
    body["choices"][0] |= changes.pop("choice", {})
    body["choices"][0]["message"] |= changes
    return status, body


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "It is "}, {"type": "text", "text": "4."}], "It is 4."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}], "4"),
        ([{"type": "output_text", "text": "4"}], "4"),
        (["4", {"text": "!"}], "4!"),
        ([], ""),
        (None, ""),
    ],
)
def test_a_text_may_come_as_a_list_of_parts(script: Script, content: object, text: str) -> None:
    script.answers = [with_message(content=content)]
    (made,) = ask(script)
    assert isinstance(made, Completion)
    assert made.text == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "a part of type 'image_url', which is no text",
        ),
        ({"content": {"a": 1}}, "is dict, neither a text nor a list"),
        ({"content": 7}, "is int, neither a text nor a list"),
        ({"content": None, "refusal": "I will not."}, "the model refuses: I will not."),
    ],
)
def test_what_is_no_text_fails_the_row_and_is_paid_for(script: Script, changes: dict[str, Any], said: str) -> None:
    script.answers = [with_message(**changes)]
    (made,) = ask(script)
    assert isinstance(made, CompletionError)
    assert said in str(made)
    assert (made.prompt_tokens, made.completion_tokens) == (1000, 500)


@pytest.mark.parametrize("body", [{"choices": ["x"]}, {"choices": {"a": 1}}, {"choices": [{}]}, {"usage": "many"}, {}])
def test_what_has_another_shape_fails_the_row(script: Script, body: dict[str, Any]) -> None:
    script.answers = [(200, {**answer()[1], **body} if body else {})]
    (made,) = ask(script, max_retries=0)
    assert isinstance(made, CompletionError)


@pytest.mark.parametrize(
    ("reason", "tokens", "truncated"),
    [
        ("eos", 500, False),
        ("eos_token", 500, False),
        ("STOP", 500, False),
        ("end_turn", 500, False),
        ("max_tokens", 500, True),
        ("MAX_TOKENS", 500, True),
        ("SAFETY", 500, True),
        ("", 6, False),
        (None, 6, False),
        ("", 7, True),  # of 7
        (None, 7, True),
    ],
)
def test_other_servers_reasons_to_end_are_known(
    script: Script, reason: str | None, tokens: int, *, truncated: bool
) -> None:
    status, body = with_message(choice={"finish_reason": reason})
    body["usage"]["completion_tokens"] = tokens
    script.answers = [(status, body)]
    (made,) = ask(script)
    assert isinstance(made, Completion)
    assert made.truncated == truncated


@pytest.mark.parametrize("reason", ["abort", "error", "tool_calls", "function_call"])
def test_what_did_not_end_fails_the_row(script: Script, reason: str) -> None:
    script.answers = [answer(finish_reason=reason)]
    (made,) = ask(script)
    assert isinstance(made, CompletionError)
    assert repr(reason) in str(made)


def in_body(code: object, message: str = "they are busy", **more: object) -> tuple[int, dict[str, Any]]:
    return 200, {"id": "1", "error": {"code": code, "message": message, **more}}


@pytest.mark.parametrize(
    "fault",
    [
        in_body(429),
        in_body("429"),
        in_body(502),
        in_body("rate_limit_exceeded"),
        in_body(None, type="overloaded_error"),
        in_body("server_error"),
        (200, {**answer()[1], "choices": [{"index": 0, "message": {}, "error": {"code": 503, "message": "busy"}}]}),
    ],
)
def test_an_error_in_the_body_of_a_success_is_asked_again(script: Script, fault: tuple[int, dict[str, Any]]) -> None:
    script.answers = [fault, answer()]
    (made,) = ask(script, max_retries=1)
    assert isinstance(made, Completion)
    script.answers = [fault]
    (made,) = ask(script, max_retries=0)
    assert isinstance(made, CompletionError)
    assert "busy" in str(made)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (in_body(400, "no such field"), CompletionError),
        (in_body("invalid_request_error", "no such field"), CompletionError),
        ((200, {"error": "no such field"}), CompletionError),
        (in_body(400, "This model's maximum context length is 2048 tokens"), PromptTooLongError),
        (in_body(402, "Insufficient credits"), CeilingError),
    ],
)
def test_an_error_in_the_body_that_stays_is_said_once(
    script: Script, fault: tuple[int, dict[str, Any]], kind: type[Exception]
) -> None:
    script.answers = [fault]
    (made,) = ask(script)
    assert type(made) is kind
    error = fault[1]["error"]
    assert (error["message"] if isinstance(error, dict) else error) in str(made)
    assert len(script.asked) == 1


def test_an_error_in_the_body_costs_nothing(script: Script) -> None:
    script.answers = [in_body(400), in_body(400), in_body(400), answer()]
    made = ask(
        script, count=4, concurrency=1, spend_ceiling=7.0, price_per_million_completion_tokens=1e6, max_retries=0
    )
    assert isinstance(made[3], Completion)


def test_a_422_is_shown_with_what_it_says(script: Script) -> None:
    script.answers = [(422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})]
    (made,) = ask(script)
    assert isinstance(made, CompletionError)
    assert "seed" in str(made)
    assert "Extra inputs are not permitted" in str(made)


def test_a_reasoning_model_is_sent_what_it_takes(script: Script) -> None:
    ask(script, max_tokens_field="max_completion_tokens", omit=["temperature", "top_p", "seed"])
    assert script.asked == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 1 + 1?"}],
            "max_completion_tokens": 7,
            "chat_template_kwargs": {"thinking": False},
        }
    ]


@pytest.mark.parametrize(
    ("text", "reason", "shown", "truncated"),
    [
        ("<think>\nhm\n</think>\n\nIt is 4.", "stop", "It is 4.", False),
        ("hm\n</think>\n\nIt is 4.", "stop", "It is 4.", False),
        ("It is 4.", "stop", "It is 4.", False),
        (" <think>hm", "stop", "", True),
        ("<think>hm</think> It", "length", "It", True),
        ("<think>hm</think>", "stop", "", False),
    ],
)
def test_thinking_in_the_text_is_cut_off(
    script: Script, text: str, reason: str, shown: str, *, truncated: bool
) -> None:
    script.answers = [answer(text, reason)]
    (made,) = ask(script, reasoning_tags=["<think>", "</think>"])
    assert isinstance(made, Completion)
    assert (made.text, made.truncated) == (shown, truncated)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_in_a_field_of_its_own_is_no_part_of_the_text(script: Script, field: str) -> None:
    script.answers = [with_message(content="It is 4.", **{field: "hm"})]
    (made,) = ask(script)
    assert isinstance(made, Completion)
    assert made.text == "It is 4."
