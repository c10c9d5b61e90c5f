"""A planted secret appears nowhere: errors, rows, logs, configurations, tables, cards, tracebacks."""

import asyncio
import base64
import html
import json
import re
import shlex
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.recipe import parse_recipe
from cgd_ray.errors import CgdError, ConfigError, StoppedError
from cgd_ray.execution.coordinator import as_ours
from cgd_ray.inference.base import CeilingError, CompletionError, EngineDiedError, PoisonError, PromptTooLongError
from cgd_ray.inference.openai.engine import OpenAIEngine, api_key
from cgd_ray.inference.openai.errors import retryable_error
from cgd_ray.inference.openai.options import OpenAIOptions
from cgd_ray.redaction import redact, redact_tree
from cgd_ray.report.comparison import Comparison, write_comparison
from cgd_ray.report.summary import write_report
from cgd_ray.runtime.logs import configure_logging, show_traceback
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.runs import Run
from cgd_ray.storage.schemas import PROMPTS
from cgd_ray.storage.tables import Table
from tests.unit.config.test_recipe import MINIMAL

SECRET = 'sk-planted/+"0123456789'


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted aws secret")
    monkeypatch.setenv("KEYRING_FOLDER", "/var/keys")


@pytest.mark.parametrize(
    "text",
    [
        f"Illegal header value b'Bearer {SECRET}\\n'",
        f"https://host/v1?api-version=3&q={urllib.parse.quote(SECRET)}",
        f"https://host/v1?q={urllib.parse.quote_plus(SECRET)}",
        json.dumps({"headers": {"x": SECRET}}),
        repr({"x": SECRET}),
        f"{SECRET}{SECRET}",
        "planted aws secret",
        SECRET.replace("/", "\\/"),  # PHP
        json.dumps(SECRET).replace("+", "\\u002B"),  # .NET
        json.dumps(json.dumps(json.dumps({"x": SECRET}))),
        repr(repr({"x": SECRET + "'"})),
        repr(f"Bearer {SECRET}".encode()),
        html.escape(SECRET).replace("/", "&#x2F;"),
        html.escape(html.escape(SECRET)),
        "sk&#45;planted&sol;&plus;&#34;0123456789",
        urllib.parse.quote(SECRET, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
        urllib.parse.quote(urllib.parse.quote(SECRET, safe=""), safe=""),
        "sk-planted\\x2f\\x2b\\x220123456789",
        "sk-planted\\u{2f}+\\0420123456789",
        shlex.quote(f"Bearer '{SECRET}'"),
        "planted+aws+secret",
        "planted%20aws%20secret",
    ],
)
def test_a_secret_of_the_environment_is_masked(text: str) -> None:
    masked = redact(text)
    assert "planted" not in masked
    assert "***" in masked


@pytest.mark.parametrize("secret", [SECRET, 'it\'s "so" & 1<2', "pä$$wörd 🍎\\n", "line\n\tbreak\\\\\\'x", "+/+/+/+/"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_secret_is_masked_in_all_escapes(secret: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", secret)
    escapes: list[Callable[[str], str]] = [
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        repr,
        html.escape,
        lambda text: urllib.parse.quote(text, safe=""),
        lambda text: urllib.parse.quote(text, safe="").lower(),
        shlex.quote if times == 1 else str,
    ]
    for escape in escapes:
        text = secret
        for _ in range(times):
            text = escape(text)
        assert re.sub(r"[\\'\"]", "", redact(f"before {text} after")) == "before *** after"


@pytest.mark.parametrize("before", ["", ":", "me:", "you:", "a long name:"])
def test_a_secret_is_masked_in_base64(before: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(f"{before}{SECRET}".encode()).decode()
        masked = redact(f"it is {text}.")
        assert "***" in masked
        assert len(masked) <= len("it is ***.") + 4 * (len(before) + 4) // 3 + 4
    assert (
        redact(base64.b64encode(b"some quite other text").decode())
        == base64.b64encode(b"some quite other text").decode()
    )


@pytest.mark.parametrize(
    ("variable", "is_secret"),
    [
        ("MY_API_KEY_PROD", True),
        ("OPENAI_API_KEY_TEAM_BLUE", True),
        ("GITHUB_PAT", True),
        ("AZURE_KEY_1", True),
        ("DB_PASSWORD_STAGING", True),
        ("SMTP_PASS", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("API_KEY_HEADER", False),
        ("CLIENT_SECRET_NAME", False),
        ("TOKEN_COUNTER", False),
        ("KEYBOARD", False),
        ("XPATH", False),
        ("SOME_PATH", False),
        ("COMPASS", False),
    ],
)
def test_variables_with_secrets_are_known_by_their_names(
    variable: str, *, is_secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "kubernetes")
    assert redact("it is kubernetes") == ("it is ***" if is_secret else "it is kubernetes")


@pytest.mark.parametrize(
    "text", ["\\", "'", "://a:b", "://", "&a.", "authorization ", "'authorization: '", "api-key=\\"]
)
def test_long_texts_take_linear_time(text: str) -> None:
    started = time.process_time()
    redact(text * 20000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:pa55:w@rd@host:80/v1 is away", "https://***@host:80/v1 is away"),
        ("http://token@host", "http://***@host"),
        ("GET https://h/v1?api_key=abc&x=1", "GET https://h/v1?api_key=***&x=1"),
        ("https://h/o?X-Amz-Signature=abc&X-Amz-Date=1", "https://h/o?X-Amz-Signature=***&X-Amz-Date=1"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic YWJj", "authorization: Basic ***"),
        ("api-key: abc", "api-key: ***"),
        ("https://me:pa/5/5@host/v1 is away", "https://***@host/v1 is away"),
        ("https://h/v1?accessToken=abc&x=1", "https://h/v1?accessToken=***&x=1"),
        ("https://h/v1?auth=abc", "https://h/v1?auth=***"),
        ("https://h/v1?x=1&code=abc==", "https://h/v1?x=1&code=***"),
        ("https%3A%2F%2Fh%3Fapi_key%3Dabc%26x%3D1", "https%3A%2F%2Fh%3Fapi_key%3D***%26x%3D1"),
        ('{"url":"https://h?a=1\\u0026sig=abc"}', '{"url":"https://h?a=1\\u0026sig=***"}'),
        ("Server=x;Password=abc;Database=d", "Server=x;Password=***;Database=d"),
        ("Authorization: ApiKey abc", "Authorization: ***"),
        ("authorization: Key abc\nnext line", "authorization: ***\nnext line"),
        ('Authorization: Digest username="u", response="abc"', "Authorization: ***"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=A/us, SignedHeaders=h, Signature=abc", "Authorization: ***"),
        ('{"Authorization":"ApiKey abc","x":1}', '{"Authorization":"***","x":1}'),
        ('{\\"Authorization\\":\\"Bearer abc\\"}', '{\\"Authorization\\":\\"Bearer ***\\"}'),
        (
            json.dumps(json.dumps({"authorization": 'Digest user="u", response="abc"', "x": 1})),
            json.dumps(json.dumps({"authorization": "***", "x": 1})),
        ),
        ("{&quot;Authorization&quot;:&quot;Bearer abc&quot;}", "{&quot;Authorization&quot;:&quot;Bearer ***&quot;}"),
        (
            "{\\u0022authorization\\u0022:\\u0022Key abc\\u0022,\\u0022x\\u0022:1}",
            "{\\u0022authorization\\u0022:\\u0022***\\u0022,\\u0022x\\u0022:1}",
        ),
        ("[(b'authorization', b'Bearer abc')]", "[(b'authorization', b'Bearer ***')]"),
        ("curl -H 'Authorization: ApiKey abc' https://h", "curl -H 'Authorization: ***' https://h"),
        ("authorization\tBearer abc", "authorization\tBearer ***"),
        ("apikey: abc", "apikey: ***"),
        ("X-Auth-Token: abc", "X-Auth-Token: ***"),
        ("x-goog-api-key: abc", "x-goog-api-key: ***"),
        ("Cookie: session=abc; other=def", "Cookie: ***"),
        ("{'set-cookie': 'session=abc; Path=/'}", "{'set-cookie': '***'}"),
        ("OpenAI(api_key='abc', model='m')", "OpenAI(api_key='***', model='m')"),
    ],
)
def test_credentials_of_others_are_masked(text: str, masked: str) -> None:
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c",
        "mail me@host about https://host/@me",
        "max_tokens=12, the key is missing",
        "the token false of TOKENIZERS_PARALLELISM",
        "/var/keys",
        "http://127.0.0.1:8000/v1/@me and http://[::1]:80/a@b",
        "https://en.wikipedia.org/wiki/User:Me@2024",
        "teacher.engine.apikey: Extra inputs are not permitted. Fix: remove it",
        "teacher.engine.api_key: Extra inputs are not permitted. Fix: remove it",
        "unknown keys 'api_key', 'model' and 'cookie', 'x'",
        "the authorization, which was refused, and its code: 404; code=UNAVAILABLE",
        "https://h/v1?max_tokens=12&country_code=de&monkey=1",
        "the cookie: eat it",
        "",
    ],
)
def test_other_text_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("EMPTY_KEY", "")
    assert redact(text) == text


def test_a_variable_that_a_recipe_names_holds_a_secret_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TEACHER", "planted")
    assert redact("it is planted") == "it is planted"
    parse_recipe(teacher(api_key_env="MY_TEACHER"), "r.yaml")
    assert redact("it is planted") == "it is ***"


@pytest.mark.parametrize(
    "kind",
    [
        CgdError,
        ConfigError,
        StoppedError,
        CompletionError,
        PromptTooLongError,
        PoisonError,
        EngineDiedError,
        CeilingError,
    ],
)
def test_no_error_of_ours_quotes_it(kind: type[Exception]) -> None:
    assert str(kind(f"they say {SECRET}")) == "they say ***"


def test_no_error_of_others_quotes_it_as_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert "planted" not in str(as_ours(RuntimeError(SECRET)))
    with pytest.raises(CompletionError) as caught:
        retryable_error(OSError(SECRET))  # type: ignore[arg-type]
    assert "planted" not in str(caught.value)
    show_traceback(RuntimeError(SECRET))
    shown = capsys.readouterr().err
    assert "planted" not in shown
    assert "RuntimeError: ***" in shown


def test_it_is_in_no_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    import structlog

    configure_logging()
    structlog.get_logger().warning(f"event {SECRET}", key=SECRET, nested={"x": SECRET}, count=3)
    shown = capsys.readouterr().err
    assert "planted" not in shown
    assert "count=3" in shown


def test_it_is_in_no_file_of_a_run(tmp_path: Path) -> None:
    run = Run(Store(str(tmp_path)), "r")
    run.write_json("config.json", {"teacher": {"url": f"https://me:{SECRET}@host", "list": [SECRET, 1, None]}})
    Table(run.store, "prompts", "0", PROMPTS).describe({"content": {"x": SECRET}})
    outcome: dict[str, Any] = {"generation": {}, "training": {}, "evaluation": {}, "curation": {}}
    for write in (write_report, write_comparison):
        with pytest.MonkeyPatch.context() as patch:
            for module in ("summary", "comparison"):
                patch.setattr(f"cgd_ray.report.{module}.markdown", lambda *_: SECRET)
                patch.setattr(f"cgd_ray.report.{module}._tables", lambda _: [("t", [])])
            patch.setattr("cgd_ray.report.summary._notes", lambda _: [SECRET])
            patch.setattr("cgd_ray.report.comparison._comparison_notes", lambda _: [SECRET])
            write(run, Comparison(outcome, []) if write is write_comparison else outcome)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"config.json", "table.json", "report.md", "comparison.md"}
    for file in files:
        assert "planted" not in file.read_text()
        assert "***" in file.read_text()


def test_a_tree_keeps_its_shape() -> None:
    assert redact_tree({"a": [1, (SECRET, None)], "b": {"c": True}}) == {"a": [1, ["***", None]], "b": {"c": True}}


def test_fields_that_hold_keys_are_masked_in_a_tree() -> None:
    tree = {"Authorization": "Key abc", "x-api-key": "abc", "db_password": "abc", "api_key": None, "keys": ["abc"]}
    masked = {"Authorization": "***", "x-api-key": "***", "db_password": "***", "api_key": None, "keys": ["abc"]}
    assert redact_tree({"headers": tree}) == {"headers": masked}
    assert redact_tree({"api_key_env": "OPENAI_API_KEY", "max_tokens": "5"}) == {
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens": "5",
    }


def teacher(**options: Any) -> dict[str, Any]:
    return {**MINIMAL, "teacher": {"engine": {"type": "openai", "model": "m", **options}}}


def test_a_key_from_a_file_is_sent_without_its_line_break() -> None:
    assert api_key(OpenAIOptions(type="openai", model="m")) == SECRET


@pytest.mark.parametrize("key", ["sk-planted\nmore", "sk planted", "sk-pläntéd", "\x00sk-planted", "Bearer sk-planted"])
def test_an_odd_key_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    if "\0" in key:
        key = "\x01sk-planted"  # no variable holds a NUL
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(
        ConfigError, match=r"^teacher\.engine\.api_key_env: the environment variable OPENAI_API_KEY "
    ) as e:
        asyncio.run(OpenAIEngine(OpenAIOptions(type="openai", model="m")).start())
    assert "pl" not in str(e.value).partition("OPENAI_API_KEY")[2].replace("line breaks or", "").replace("alone", "")


@pytest.mark.parametrize("field", ["api_key", "api-key", "X-Api-Key", "access_token", "Authorization", "password"])
def test_a_key_in_the_body_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"extra_body: {field!r} would be stored with each run\. Fix: ") as caught:
        parse_recipe(teacher(extra_body={field: "planted"}), "r.yaml")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"storage": {"endpoint_url": "https://me:planted@host"}},
        {"training": {"tracking": {"mlflow_uri": "https://me:planted@host"}}},
        {"run": {"name": "r", "root": "https://me:planted@host"}},
        {"teacher": {"engine": {"type": "openai", "model": "m", "api_key_env": "sk-planted-1"}}},
        {"teacher": {"engine": {"type": "openai", "model": "m", "api_key": "planted"}}},
        *(
            {"teacher": {"engine": {"type": "openai", "model": "m", "base_url": url}}}
            for url in (
                "https://me:planted@host/v1",
                "https://me:pl/planted@host/v1",
                "https://planted@host/v1",
                "https://host/v1?api-key=planted",
                "https://host/v1?api-version=1&accessToken=planted",
                "https://host/v1?code=planted",
            )
        ),
    ],
)
def test_a_recipe_with_a_key_is_refused_without_quoting_it(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**MINIMAL, **change}, "r.yaml")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://h/openai?api-version=2024-10-21", "http://[::1]:8/v1"]
)
def test_a_url_without_a_key_is_accepted(url: str) -> None:
    parse_recipe(teacher(base_url=url), "r.yaml")


def test_what_a_command_prints_has_no_credentials(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "jobs" / "recipes" / "openai-teacher.yaml"
    command = [str(Path(sys.executable).with_name("cgd")), "validate", str(recipe), f"run.root={tmp_path}"]
    done = subprocess.run(
        [*command, "teacher.engine.base_url=http://me:planted@127.0.0.1:9/v1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "teacher.engine.base_url: a name, password or key in this URL would be stored" in done.stderr
    assert "planted" not in done.stdout + done.stderr
