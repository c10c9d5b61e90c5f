"""Keys and the guard before the served student, in one process. Over real HTTP: tests/integration/test_serving.py."""

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.config.serving import Access, is_loopback
from cgd_ray.errors import ConfigError
from cgd_ray.serving.app import build
from cgd_ray.serving.ingress import ClosedIngress, _is_the_requests_fault
from cgd_ray.serving.keys import Keys, digest_of, new_key, read_keys

KEY = "sk-a-key"
GOOD = {"authorization": f"Bearer {KEY}"}


def app(**access: Any) -> ASGIApp:
    """What stands before the student, with other things behind it."""
    behind = FastAPI()
    behind.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)

    @behind.get("/v1/models")
    def models() -> str:
        return "shown"

    @behind.get("/v1/models/{model:path}")
    def headers(request: Request) -> dict[str, str]:
        return dict(request.headers)

    @behind.post("/v1/completions")
    async def completions(request: Request) -> int:
        return len(await request.body())

    @behind.get("/v1/chat/completions")
    def error(status: int, text: str, *, is_raised: bool) -> PlainTextResponse:
        if is_raised:
            raise HTTPException(status, text)
        return PlainTextResponse(text, status, {"Retry-After": "5"})

    @behind.get("/metrics")
    def metrics() -> str:
        return "no route of the student's"

    given = SimpleNamespace(app=behind, _access=Access(**access))
    return ClosedIngress.__serve_build_asgi_app__(given)  # type: ignore[no-any-return]


def ask(path: str, method: str = "GET", client: str = "10.0.0.1", made: ASGIApp | None = None, **options: Any) -> Any:
    transport = httpx.ASGITransport(made or app(key_digests=[digest_of(KEY)]), client=(client, 1))

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url=options.pop("url", "http://host")) as session:
            return await session.request(method, path, **options)

    return asyncio.run(scenario())


def test_routes_are_the_students_alone() -> None:
    assert ask("/v1/models", headers=GOOD).json() == "shown"
    assert ask("/metrics", headers=GOOD).status_code == 404
    assert ask("/v1/models").status_code == 401
    assert ask("/metrics").status_code == 401


@pytest.mark.parametrize("is_raised", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_every_error_has_openais_form(status: int, kind: str, is_raised: bool) -> None:  # noqa: FBT001
    answer = ask("/v1/chat/completions", headers=GOOD, params={"status": status, "text": "No!", "is_raised": is_raised})
    assert answer.status_code == status
    assert answer.json()["error"] == {
        "message": "No!",
        "type": kind,
        "param": None,
        "code": "rate_limit_exceeded" if status == 429 else None,
    }
    assert answer.headers.get("retry-after") == (None if is_raised else "5")


@pytest.mark.parametrize("size", [0, 99, 100, 101, 5000])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_has_a_largest_size(size: int, is_chunked: bool) -> None:  # noqa: FBT001
    async def parts() -> Any:
        for start in range(0, size, 64):
            yield b"x" * min(64, size - start)

    content = parts() if is_chunked else b"x" * size
    made = app(key_digests=[digest_of(KEY)], max_body_bytes=100)
    answer = ask("/v1/completions", "POST", made=made, content=content, headers=GOOD)
    assert answer.status_code == (413 if size > 100 else 200)
    assert size > 100 or answer.json() == size


@pytest.mark.parametrize(
    ("client", "url", "status"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", 200),
        ("::1", "http://[::1]:8000", 200),
        ("::ffff:127.0.0.1", "http://localhost:8000", 200),
        ("10.0.0.1", "http://localhost:8000", 403),
        ("10.0.0.1", "http://10.0.0.2:8000", 403),
        # A web page of a name that leads to this machine.
        ("127.0.0.1", "http://evil.example:8000", 403),
        ("127.0.0.1", "http://localhost.evil.example:8000", 403),
        ("127.0.0.1", "http://127.0.0.1.evil.example:8000", 403),
    ],
)
def test_without_keys_this_machine_alone_may_ask(client: str, url: str, status: int) -> None:
    assert ask("/v1/models", client=client, made=app(no_key=True), url=url).status_code == status


@pytest.mark.parametrize(
    "header",
    [
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
    ],
)
def test_without_keys_neither_pages_nor_proxies_may_ask(header: dict[str, str]) -> None:
    made, here = app(no_key=True), {"client": "127.0.0.1", "url": "http://127.0.0.1:8000"}
    assert ask("/v1/models", made=made, headers=header, **here).status_code == 403
    assert ask("/v1/models", made=made, **here).status_code == 200


def test_neither_the_key_nor_headers_of_serve_go_on() -> None:
    sent = {**GOOD, "x-data-parallel-rank": "1", "x-session-id": "s", "user-agent": "me"}
    passed = ask("/v1/models/headers", headers=sent).json()
    assert "authorization" not in passed
    assert passed["user-agent"] == "me"
    assert not passed.keys() & {"x-data-parallel-rank", "x-session-id"}
    for name in ("x-request-disconnect-disabled", "x-request-timeout-seconds"):
        assert ask("/v1/models", headers={**GOOD, name: "1"}).status_code == 400


def test_a_file_of_keys_may_have_a_mark_of_its_encoding(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf" + KEY.encode() + b"\r\n")
    assert Keys([], str(file)).are_good(KEY.encode())


def test_a_key_in_place_of_its_digest_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"model": "org/name", "key_digests": "sk-my-real-secret"})
    assert str(caught.value).startswith("serving: key_digests: not the SHA-256")
    assert "sk-my" not in str(caught.value)


def test_pages_of_named_origins_may_ask() -> None:
    made = app(key_digests=[digest_of(KEY)], allowed_origins="https://chat.example.org,http://localhost:3000")
    for origin, is_allowed in (("https://chat.example.org", True), ("https://evil.example", False)):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "authorization, content-type, x-stainless-os"
        preflight = ask("/v1/chat/completions", "OPTIONS", made=made, headers=asked)
        shown = ask("/v1/models", made=made, headers={"origin": origin, **GOOD})
        refused = ask("/v1/models", made=made, headers={"origin": origin})
        assert preflight.status_code == (200 if is_allowed else 400)
        assert (shown.status_code, refused.status_code) == (200, 401)
        for answer in (preflight, shown, refused):
            assert answer.headers.get("access-control-allow-origin") == (origin if is_allowed else None)
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "https://a/b", "https://*.example.org"])
def test_an_origin_is_one_web_page(origin: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        Access(allowed_origins=(origin,))


@given(
    key=st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=60).filter(
        lambda key: not key.startswith(("#", "sha256:"))
    )
)
def test_any_key_of_a_file_is_good_and_kept_as_its_digest(key: str) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()
    for text in (f"{key}\n", f"# mine\r\n\r\n  {key}  \r\n", f"sha256:{digest}", f"sha256:{digest.upper()}\n"):
        assert read_keys(text, "keys") == {digest}
    keys = Keys([digest], None)
    assert keys.are_good(key.encode())
    assert not keys.are_good(key.encode() + b" ")


@pytest.mark.parametrize("text", ["", "\n# none\n", "two words", "sha256:xyz", f"sha256:{'0' * 63}"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^keys_file {file}: .*Fix: one key a line") as caught:
        Keys([], str(file))
    assert not text.strip() or text.strip() not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^keys_file /no/such/file: cannot be read on "):
        Keys([], "/no/such/file")


def test_new_keys_differ() -> None:
    assert len({new_key() for _ in range(100)}) == 100


def test_nobody_is_let_in_by_leaving_keys_out() -> None:
    with pytest.raises(ConfigError, match=r"^serving: nobody has a key\. Fix: pass keys_file=FILE.* or no_key=true"):
        build({"model": "org/name"})
    with pytest.raises(ConfigError, match="no_key beside keys_file"):
        build({"model": "org/name", "no_key": "true", "keys_file": "/etc/keys"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0" + ".0.0.0", "10.1.2.3", "student.example.org"])
def test_a_recipe_leaves_keys_out_on_loopback_alone(host: str) -> None:
    is_refused = host not in ("127.0.0.1", "localhost", "::1")
    tree = {
        "run": {"name": "r", "root": "runs"},
        "data": {"type": "demo"},
        "student": {"model": "s", "engine": {"type": "scripted"}},
        "teacher": {"engine": {"type": "scripted"}},
        "serving": {"no_key": True, "host": host},
    }
    assert is_loopback(host) is not is_refused
    if not is_refused:
        parse_recipe(tree, "r.yaml")
        return
    with pytest.raises(ConfigError, match=f"serving.no_key: others reach serving.host {host}. Fix: leave no_key out"):
        parse_recipe(tree, "r.yaml")


@pytest.mark.parametrize(
    ("innermost", "is_fault"),
    [
        ("vllm/entrypoints/chat_utils.py", True),
        ("vllm/renderers/hf.py", True),
        ("tokenizers/__init__.py", True),  # called by a renderer
        ("vllm/v1/core/block_pool.py", False),
    ],
)
def test_a_fault_of_the_engine_stays_a_servers_error(innermost: str, is_fault: bool) -> None:  # noqa: FBT001
    calls = ["ray/serve/_private/replica.py", "vllm/entrypoints/serving.py", "vllm/renderers/base.py", innermost]
    text = "".join(f'  File "/site-packages/{call}", line 1, in x\n' for call in calls)
    error = RayTaskError("chat", f"{text}KeyError: 7", KeyError(7)).as_instanceof_cause()
    assert _is_the_requests_fault(error) is is_fault


def test_an_error_of_ours_is_a_servers_error() -> None:
    assert not _is_the_requests_fault(RayTaskError("chat", "KeyError: 7", KeyError(7)))
