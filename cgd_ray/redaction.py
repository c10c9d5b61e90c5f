"""Mask keys, tokens and passwords in all output: errors, logs, configurations, cards, reports."""

import json
import os
import re
import urllib.parse
from collections.abc import Iterator, MutableMapping

MASK = "***"

_SHORTEST = 8  # characters: masking shorter values would mask parts of ordinary words
_SHORTEST_NAMED = 4  # for a variable that the recipe names, which certainly holds a key
_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s'\"]*@(?=[^/\s])")
_IN_QUERY = re.compile(
    r"([?&](?:[\w.-]*[_.-])?(?:api_?key|key|token|secret|password|signature|sig|credential)=)[^&\s'\"]+", re.IGNORECASE
)
_IN_HEADER = re.compile(
    r"((?:authorization|api-key)['\"]?\s*[:=,]\s*(?:b?['\"])?(?:(?:bearer|basic|token)\s+)?)[^\s'\",]+", re.IGNORECASE
)
_named: set[str] = set()


def name_secret_variable(variable: str) -> None:
    """Treat an environment variable's value as a secret in this process, whatever its name is."""
    _named.add(variable)


def read_secret(variable: str, key: str) -> str | None:
    """Return the variable's value without the blanks and line breaks that files and YAML leave; None if not set.

    Raises:
        ValueError: the value is no key: HTTP clients would print it when they refuse it.
    """
    name_secret_variable(variable)
    value = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in value):
        raise ValueError(
            f"{key}: the environment variable {variable} holds blanks, line breaks or characters beyond ASCII inside. "
            "Fix: set it to the key alone"
        )
    return value or None


def tidy_secret(variable: str, key: str) -> None:
    """Strip blanks and line breaks from a variable that a library reads itself.

    Raises:
        ValueError: as `read_secret`.
    """
    if value := read_secret(variable, key):
        os.environ[variable] = value


def redact(text: str) -> str:
    """Return the text with every secret of the environment, and credentials in URLs and headers, replaced by `***`."""
    for secret in sorted(_forms(), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _IN_URL.sub(f"{MASK}@", text)
    text = _IN_QUERY.sub(rf"\g<1>{MASK}", text)
    return _IN_HEADER.sub(rf"\g<1>{MASK}", text)


def redact_tree(value: object) -> object:
    """Redact all text in a JSON document."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: redact_tree(inner) for key, inner in value.items()}
        case list() | tuple():
            return [redact_tree(inner) for inner in value]
    return value


def redact_event(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Redact a log event, as a structlog processor."""
    return {key: redact(str(value)) if not isinstance(value, int | float) else value for key, value in event.items()}


def _forms() -> set[str]:
    """Return the secrets in the forms that a text may contain: whole, in parts, and escaped for URLs and JSON."""
    found = set()
    for secret in _secrets():
        found |= {secret, urllib.parse.quote(secret), urllib.parse.quote_plus(secret), json.dumps(secret)[1:-1]}
    return found


def _secrets() -> Iterator[str]:
    for variable, value in os.environ.items():
        is_named = variable in _named
        if is_named or (_NAMES.search(variable) and not value.startswith("/")):  # else the path of a file with keys
            shortest = _SHORTEST_NAMED if is_named else _SHORTEST
            yield from (part for part in {value.strip(), *value.split()} if len(part) >= shortest)
