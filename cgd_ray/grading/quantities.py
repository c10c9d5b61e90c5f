"""Plain answers: numbers with or without a unit, and words.

Most answers are one of these and need no algebra to be compared.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# Thousands commas, decimals, fractions and mixed numbers, with sign, currency and percent. Not a number: the
# 2 of x2, 2x, x-2 and 12:30.
NUMBER = (
    r"(?<![\w.,:/^])(?<![A-Za-z)]-)(?:[-+]\s?)?(?:[$€£]\s?)?(?:[-+](?=[\d.]))?"
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\s+\d+/\d+|\d+/\d+|\d+(?:\.\d+)?|\.\d+)"
    r"(?![\d/:^]|[.,]\d|[A-Za-z](?![A-Za-z]))(?:\s?%)?"
)
_QUANTITY = re.compile(rf"(?P<before>[^\W\d_]+\s)?(?P<number>{NUMBER})\s*(?P<after>[^\W\d_][^\d\\^_+*/=()<>|]*)?")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_WORDS = re.compile(r"[^\W\d_]{3,}|[^\W\d_]+(?:[ '-][^\W\d_]+)+")
_REWRITES = (
    (re.compile(r"\\left|\\right|\\[!,]"), ""),
    (re.compile(r"\\[;: ]|~"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°"), ""),
)
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_DASHES = dict.fromkeys(map(ord, "\N{MINUS SIGN}\N{EN DASH}"), "-")
_FACTORS = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "dozen": 12,
    "minus": -1,
    "negative": -1,
}
_CHANGING = {"not", "half", "double", "twice", "triple", "quarter"}  # before a number: it is another one
_CURRENCIES = {"dollar": "$", "usd": "$", "euro": "€", "eur": "€", "cent": "cent"}
_SINGULARS = {"feet": "foot", "inches": "inch", "people": "person", "men": "man", "women": "woman", "children": "child"}
# Decimals of a fraction that never ends count as it from six places on.
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class Quantity:
    """A rational number as a text writes it."""

    value: Fraction
    unit: str
    """The words beside it, empty where there are none."""
    percent: bool
    currency: str = ""
    """`$`, `€`, `£` or `cent`, empty where none is named."""


def unwrap(text: str) -> str:
    """The text without math delimiters, emphasis and closing punctuation around it."""
    text = unicodedata.normalize("NFC", text).translate(_DASHES).strip()
    changed = True
    while changed:
        before = text
        text = text.rstrip(".,;: ").strip()
        for left, right in _DELIMITERS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text = text[len(left) : -len(right)].strip()
        changed = text != before
    return text


def plain(text: str) -> str:
    r"""The text as one would type it: no `\text{}`, no spacing commands, `\frac{a}{b}` as a/b."""
    text = _TEXT.sub(r" \1 ", unwrap(text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return " ".join(_FRACTION.sub(r" \1/\2", text).split()).rstrip(".,;: ")


def quantity(text: str) -> Quantity | None:
    """The number that a plain text consists of, beside words; None where it is anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number, before, after = match["number"], (match["before"] or "").casefold().split(), _words(match["after"])
    value = _value(re.sub(r"[$€£%,]|(?<=[-+])\s", "", number).strip())
    if value is None or _CHANGING.intersection(before):
        return None
    for word in [*before, *after]:
        value *= _FACTORS.get(word, 1)
    words = [_SINGULARS.get(word, word.removesuffix("s")) for word in [*before, *after] if word not in _FACTORS]
    currency = next((sign for sign in "$€£" if sign in number), "") or next(
        (_CURRENCIES[word] for word in words if word in _CURRENCIES), ""
    )
    unit = " ".join(word for word in words if word != "%" and word not in _CURRENCIES)
    return Quantity(value, unit, "%" in number or "%" in words, currency)


def _words(text: str | None) -> list[str]:
    return (text or "").casefold().replace("percent", "%").split()


def same_quantity(gold: Quantity, prediction: Quantity) -> bool:
    """Whether two quantities are equal: exactly, but for decimals of a fraction that never ends.

    Units count only where both name one. With a percent sign on one side only, 25% is both 25 and 0.25, since
    questions ask for either.
    """
    for mine, other in ((gold.unit, prediction.unit), (gold.currency, prediction.currency)):
        if mine and other and mine != other:
            return False
    pairs = [(gold.value, prediction.value)]
    if gold.percent != prediction.percent:
        factor = Fraction(1, 100) if gold.percent else Fraction(100)
        pairs.append((gold.value * factor, prediction.value))
    return any(_equal(left, right) for left, right in pairs)


def is_words(text: str) -> bool:
    """Whether a plain text is words, to be compared as they stand: algebra finds `seat` equal to `east`."""
    return _WORDS.fullmatch(text) is not None


def _equal(gold: Fraction, prediction: Fraction) -> bool:
    if gold == prediction:
        return True
    return _terminates(gold) != _terminates(prediction) and abs(gold - prediction) <= _TOLERANCE


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _value(number: str) -> Fraction | None:
    whole, _, part = number.rpartition(" ")
    try:
        if not whole:
            return Fraction(part)
        return Fraction(whole) + (-1 if whole.startswith("-") else 1) * Fraction(part)
    except ZeroDivisionError:
        return None
