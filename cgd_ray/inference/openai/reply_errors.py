"""Errors in bodies with status 200, in the forms of OpenAI, Anthropic, MiniMax, Baidu, FastAPI and gateways."""

from dataclasses import dataclass

_CODES = ("code", "status", "status_code", "error_code", "type")
_WORDS = ("message", "msg", "status_msg", "error_msg", "error_message", "detail")
_SUCCESSES = {"", "0", "200", "success", "ok", "true"}
_DEEPEST = 8  # errors within errors


@dataclass(frozen=True)
class ReplyError:
    """An error in a body with status 200."""

    status: int | None
    """HTTP status in the body, if any."""
    code: str
    words: str


def reply_error(told: object) -> ReplyError:
    """Return the error in a value that stands for one: an object, a list of them, or words."""
    fields = _innermost(told)
    codes = [_code(fields[name]) for name in _CODES if fields.get(name) is not None]
    status = next((int(code) for code in codes if _is_status(code)), None)
    words = next((fields[name] for name in _WORDS if fields.get(name)), told)
    return ReplyError(status, " ".join(codes), " ".join(str(words).split()))


def error_among(fields: dict[str, object]) -> object:
    """Return the error among the fields of a body without `error` and without a completion; None if there is none."""
    base = fields.get("base_resp")
    if isinstance(base, dict) and _code(base.get("status_code") or 0) != "0":
        return base
    if errors := fields.get("errors"):
        return errors
    codes = [_code(fields[name]) for name in _CODES if fields.get(name) is not None]
    if codes and all(code.lower() in _SUCCESSES for code in codes):
        return None
    return fields if any(fields.get(name) for name in _WORDS) else None


def _innermost(told: object) -> dict[str, object]:
    """Return the fields of an error within errors; those further in win."""
    found: dict[str, object] = {}
    for _ in range(_DEEPEST):
        if isinstance(told, list) and told and isinstance(told[0], dict | str) and "loc" not in told[0]:
            told = told[0]
        if not isinstance(told, dict):
            break
        found |= told
        inner = told.get("error") or (told.get("detail") if isinstance(told.get("detail"), dict) else None)
        if not inner:
            return found
        told = inner
    if any(found.get(name) for name in _WORDS):  # words beside a code: {"error": "rate_limit", "message": ...}
        return {"type": told, **found}
    return found | {"message": told}


def _code(value: object) -> str:
    """Return a code as text: 429.0 and "429.0" are 429."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split()).removesuffix(".0")


def _is_status(code: str) -> bool:
    return len(code) == 3 and code.isascii() and code.isdigit() and 100 <= int(code) < 600
