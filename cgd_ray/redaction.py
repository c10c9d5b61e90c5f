"""Mask keys, tokens and passwords in all output: errors, logs, configurations, cards, reports."""

import base64
import html.entities
import os
import re
from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from functools import lru_cache

MASK = "***"

_SHORTEST = 8  # characters: masking shorter values would mask parts of ordinary words
_SHORTEST_NAMED = 4  # for a variable that the recipe names, which certainly holds a key
_NAMES = re.compile(
    r"""
    (KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(?<![A-Z0-9])(PAT|PASS|PWD))
    (_(ID|PROD|PRODUCTION|LIVE|DEV|DEVELOPMENT|TEST|TESTING|STAGE|STAGING|MAIN|PRIMARY|SECONDARY|OLD|NEW|V?\d+))*$
    | (API|ACCESS|SECRET|AUTH|PRIVATE|BEARER|REFRESH|CLIENT)_?(KEY|TOKEN|SECRET)_
      (?!(.*_)?(FILE|PATH|DIR|FOLDER|NAME|ENV|VAR|VARIABLE|URL|URI|HOST|ENDPOINT|HEADER|TYPE|KIND|MODE|PREFIX|LENGTH|
      SIZE|LIMIT|TTL|REQUIRED|ENABLED|BACKEND|PROVIDER|STORE|VAULT|ALGORITHM|FORMAT|REGION|HELPER|SCOPES?)$)
    """,
    re.IGNORECASE | re.VERBOSE,
)

_IN_URL = re.compile(
    r"""
    (?<=://)(?:
        [^/\s'"]*                                      # no slash before the host
        | [^/\s'"@:\[]*:(?!\d{1,5}[/?\#])[^\s'"]{0,512}  # NAME:PASSWORD with slashes, not HOST:PORT/
    )@(?=[^/\s])
    """,
    re.VERBOSE,
)
_KEY_FIELDS = r"""[\w.-]{0,64}(?:
    (?:api|access|account|auth|private|secret|shared|subscription|functions)[_-]?key
    | token | secret | password | passwd | passphrase | signature | credentials?
)"""
_IN_QUERY = re.compile(
    rf"""
    (
        (?:[?&]|&amp;|%3F|%26|\\u0026)
        (?:{_KEY_FIELDS} | (?:[\w.-]{{0,64}}[_.-])?(?:key|sig|pwd|pat|jwt) | auth | authorization | code)(?:=|%3D)
        | ;\s?(?:{_KEY_FIELDS}|pwd)=
    )
    (?:(?!%26|\\u0026|;[\w.\s-]{{1,64}}=)[^&\s'"])+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_QUOTE = r"(?:\\{0,15}(?:['\"]|(?<=\\)u002[27])|&(?:quot|apos|\#0?3[49]|\#x2[27]);)"
_QUOTED = rf"(?P<quote>{_QUOTE})(?P<scheme>(?:(?:bearer|basic|token)\s+)?).*?(?=(?<!\\)(?P=quote)|$)"
_VALUE = r"(?:[^\s'\",\\]|\\(?!\\{0,15}['\"]))+"
_KEY_HEADERS = r"(?:api-?key|(?:auth|access|session|security|private)-token|(?:subscription|functions)-key)"
_IN_QUOTED_HEADER = re.compile(
    rf"""
    (?P<name>(?:
        (?:authorization | {_KEY_HEADERS})(?:{_QUOTE})?\s{{0,9}}[:=,]
        | (?:(?:set-)?cookie | api_key | (?:access|auth)_token)(?:{_QUOTE})?\s{{0,9}}[:=]
    )\s{{0,9}}b?){_QUOTED}
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_IN_HEADER = re.compile(
    rf"""
    ((?<!\.){_KEY_HEADERS}(?:{_QUOTE})?\s{{0,9}}[:=]\s{{0,9}}(?:(?:bearer|basic|token)\s+)?){_VALUE}
    | (authorization(?:{_QUOTE})?\s{{0,9}}[:=\t]\s{{0,9}}(?:bearer|basic|token)\s+){_VALUE}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IN_REST_OF_LINE = re.compile(
    rf"""
    (?P<open>{_QUOTE})?
    (?P<name>authorization[\ \t]{{0,9}}[:=][\ \t]{{0,9}} | (?:set-)?cookie:[\ \t]{{0,9}}(?=[\w.-]{{1,64}}=))
    (?!(?:bearer|basic|token)\s+\*\*\* | {_QUOTE} | b['"] | \*\*\* | \s)
    (?(open).+?(?=(?<!\\)(?P=open)|$)|.+)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_KEY_FIELD = re.compile(
    rf"(?:.*[_-])?(?:authorization|cookie|{_KEY_HEADERS}|api_key|(?:access|auth)_token|password)", re.I
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
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        for part, pattern in _forms(secret):
            if part in text:
                text = pattern.sub(MASK, text)
    text = mask_url_credentials(text)
    text = _IN_QUOTED_HEADER.sub(rf"\g<name>\g<quote>\g<scheme>{MASK}", text)
    text = _IN_HEADER.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)
    return _IN_REST_OF_LINE.sub(lambda found: f"{found['open'] or ''}{found['name']}{MASK}", text)


def one_line(text: object, most: int) -> str:
    """Mask the secrets in a text, join its lines, and only then cut it: a part of a key would not be recognized."""
    return " ".join(redact(str(text)).split())[:most]


def mask_url_credentials(text: str) -> str:
    """Return the text with names, passwords and keys in its URLs replaced by `***`."""
    text = _IN_URL.sub(f"{MASK}@", text)
    return _IN_QUERY.sub(rf"\g<1>{MASK}", text)


def redact_tree(value: object) -> object:
    """Redact all text in a JSON document."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: _redact_field(key, inner) for key, inner in value.items()}
        case list() | tuple():
            return [redact_tree(inner) for inner in value]
    return value


def _redact_field(name: object, value: object) -> object:
    is_key = isinstance(value, str) and isinstance(name, str) and _KEY_FIELD.fullmatch(name)
    return MASK if is_key else redact_tree(value)


def redact_event(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Redact a log event, as a structlog processor."""
    return {key: redact(str(value)) if not isinstance(value, int | float) else value for key, value in event.items()}


@lru_cache(maxsize=256)
def _forms(secret: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return patterns of the secret as others write it: escaped, once or several times, and in base64.

    Each comes with a part that the text must contain for the pattern to match, which is cheap to look for: letters and
    digits of ASCII are never escaped.
    """
    texts = {secret} | _in_base64(secret)
    return [(max(re.findall(r"[A-Za-z0-9]*", text), key=len), re.compile(_escaped(text))) for text in texts]


def _escaped(text: str) -> str:
    """Return a pattern of the text with any escapes: JSON's, Python's, HTML's, a URL's, a shell's; linear in time."""
    parts = re.findall(r"[A-Za-z0-9]+|\\+|[^A-Za-z0-9\\]", text)
    return "".join(part if part[0].isascii() and part[0].isalnum() else _any_escape(part[0]) for part in parts)


def _any_escape(character: str) -> str:
    """Return a pattern of the character's escapes; of a backslash, of several in a row."""
    code = ord(character)
    units = character.encode("utf-16-be").hex()
    octets = [f"{octet:02x}" for octet in character.encode(errors="surrogatepass")]
    entities = "|".join([f"#x0{{0,6}}{code:x}", f"#0{{0,6}}{code}", *_entities()[character]])
    forms = [
        rf"u0{{0,4}}{code:04x}",
        rf"u\{{0{{0,4}}{code:x}\}}",
        r"\\{1,15}".join(f"u{units[place : place + 4]}" for place in range(0, len(units), 4)),
        r"\\{1,15}".join(f"x{octet}" for octet in octets),
        f"{code:03o}",
        "".join(f"%(?:25){{0,3}}{octet}" for octet in octets),
        f"&(?:amp;){{0,3}}(?:{entities});",
    ]
    coded = f"(?i:{'|'.join(forms)})"
    if character == "\\":
        return rf"(?:\\|{coded}){{1,64}}"
    letters = {"\n": r"(?:\r?\n|(?<=\\)n)", "\r": r"(?:\r|(?<=\\)r)", "\t": r"(?:\t|(?<=\\)t)", " ": "[ +]"}
    doubled = {"'": r"""'(?:"'"'|\\''|')?""", '"': '""?'}
    alone = (letters | doubled).get(character, re.escape(character))
    return rf"\\{{0,15}}(?:{alone}|{coded})"


@lru_cache(maxsize=1)
def _entities() -> defaultdict[str, list[str]]:
    """Return the names of each character in HTML."""
    names = defaultdict[str, list[str]](list)
    for name, character in html.entities.html5.items():
        if name.endswith(";"):
            names[character].append(re.escape(name[:-1]))
    return names


def _in_base64(secret: str) -> set[str]:
    """Return the secret in base64, alone and behind one or two other bytes, as far as these do not change it."""
    found = set()
    for before in range(3):
        octets = bytes(before) + secret.encode(errors="surrogateescape")
        start, rest = (0, 2, 3)[before], len(octets) % 3
        whole = base64.b64encode(octets).decode().rstrip("=")
        coded = whole[start : len(whole) - (rest > 0)]  # the last character also has bits of what follows
        if len(coded) >= _SHORTEST:
            found |= {coded, coded.replace("+", "-").replace("/", "_")}
    return found


def _secrets() -> Iterator[str]:
    for variable, value in os.environ.items():
        is_named = variable in _named
        if is_named or (_NAMES.search(variable) and not value.startswith("/")):  # else the path of a file with keys
            shortest = _SHORTEST_NAMED if is_named else _SHORTEST
            yield from (part for part in {value.strip(), *value.split()} if len(part) >= shortest)
