"""Plain answers: numbers with or without a unit, times of day, choices, and words.

Most answers are one of these and need no algebra to be compared.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from cgd_ray.grading.numbers import NUMBER, WORDS, value_of, value_of_words
from cgd_ray.grading.vocabulary import CURRENCIES, FACTORS, HEDGES, MATHEMATICAL, SHORT, SIGNS, SINGULARS, UNITS

_LONGEST = 200  # characters: longer text is no number with a unit

_WORD = r"[^\W\d_]+(?:[./][^\W\d_]+)*"
_QUANTITY = re.compile(
    rf"(?P<before>(?:{_WORD}\.?\s+){{0,2}})(?P<number>{NUMBER})(?P<glue>\s*[-]?)"
    rf"(?P<after>(?:'{{1,2}}|\"|¢|₹|元|{_WORD})(?:[\s/·*-]+{_WORD}|\s*\^\s*\{{?-?\d\}}?|[²³]|[23](?!\d))*)?"
)
_PARENTHESIS = re.compile(r"\s*\(\s*(?:[^\W\d_]{2,}[^()\d]*|[^()\d]*[^\W\d_]{3,}[^()\d]*)\)")
_WORDS = re.compile(r"[^\W\d_]{3,}|[^\W\d_]+(?:[ ,'-]+[^\W\d_]+)+")
_TIME = re.compile(r"(\d{1,2}):(\d{2})\s*([ap])?\.?(?:m\.?)?", re.IGNORECASE)
_CHOICE = re.compile(
    r"\(([A-Ja-j])\)(?:[\s:.,]+(?P<text>.+))?|([A-Ja-j])(?:[).:]\s*|\s*[):]\s+)(?P<more>\S.*)", re.DOTALL
)
# Decimals equal a non-terminating fraction from six places on.
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class Quantity:
    """A rational number as written in a text."""

    value: Fraction
    units: frozenset[str]
    """The words beside it; empty if there are none."""
    percent: bool
    currency: str = ""
    """`$`, `€`, `£` or `cent`; empty if none is named."""


def without_remark(text: str) -> str:
    """Return the text without words in parentheses, as in 9 (apples), 5 (approximately)."""
    shorter = _PARENTHESIS.sub("", text).strip()
    return shorter or text


def quantity(text: str) -> Quantity | None:
    """Parse a plain text that is a number, alone or beside words; None for any other text."""
    if len(text) > _LONGEST:
        return None
    match = _QUANTITY.fullmatch(text)
    if match is None:
        value = value_of_words(text)
        return _in_words(text) if value is None else Quantity(value, frozenset(), percent=False)
    before, after = match["before"].casefold().split(), _words(match["after"])
    value = value_of(match["number"])
    if value is None or not _fit(before, after, is_glued=match["glue"] == ""):
        return None
    return _quantity(value, [*before, *after], match["number"])


def _in_words(text: str) -> Quantity | None:
    """Parse a number in words at the beginning, with a unit: "twelve apples"."""
    found = WORDS.match(text)
    after = _words(text[found.end() :]) if found else []
    value = value_of_words(found.group()) if found else None
    if value is None or not are_units(after) or re.search(r"\d", text):
        return None
    return _quantity(value, after, "")


def _quantity(value: Fraction, words: list[str], number: str) -> Quantity:
    for word in words:
        value *= FACTORS.get(word, 1) * SIGNS.get(word, 1)
    named = [word for word in words if word not in FACTORS and word not in SIGNS and word not in HEDGES]
    singular = [SINGULARS.get(word, word if len(word) < 4 else word.removesuffix("s")) for word in named]
    currency = next((sign for sign in "$€£" if sign in number), "") or next(
        (CURRENCIES[word] for word in singular if word in CURRENCIES), ""
    )
    units = frozenset(SHORT.get(word, word) for word in singular if word != "%" and word not in CURRENCIES)
    return Quantity(value, units, "%" in number or "%" in named, currency)


def are_units(words: list[str]) -> bool:
    """Whether words after a number or formula leave its value unchanged."""
    return bool(words) and _fit([], [word.casefold() for word in words], is_glued=False)


def _fit(before: list[str], after: list[str], *, is_glued: bool) -> bool:
    """Whether words beside a number keep its meaning, unlike those of 12 pi, 5 or more and sin 30."""
    if any(word not in HEDGES and word not in SIGNS and word.strip(".") not in UNITS for word in before):
        return False
    for place, word in enumerate(after):
        if word in MATHEMATICAL:
            return False
        is_known = word in UNITS or word in FACTORS or word in {"%", "'", "''", '"', "¢", "per", "²", "³"}
        is_foreign = any(ord(letter) > 0x24F for letter in word) and not any(0x370 <= ord(c) <= 0x3FF for c in word)
        if is_known or is_foreign or re.fullmatch(r"[\^{}23-]+", word):
            continue
        if (is_glued and place == 0) or (
            len(word) < 3 and (place == 0 or word not in {"a", "an", "in", "of", "on", "at", "by"})
        ):
            return False
    return True


def _words(text: str | None) -> list[str]:
    text = (text or "").casefold().replace("percent", "%").replace("percentage", "%")
    return [word for word in re.split(r"[\s/·*]+|(?<=[^\W\d_])(?=[\^²³23])", text) if word]


def same_quantity(gold: Quantity, prediction: Quantity) -> bool:
    """Whether two quantities are equal: exactly, except for decimals of a non-terminating fraction.

    Units differ only if both sides name some and share no word. With a percent sign on one side only, 25% is both 25
    and 0.25, since questions ask for either.
    """
    if gold.units and prediction.units and not gold.units & prediction.units:
        return False
    if gold.currency and prediction.currency and gold.currency != prediction.currency:
        return False
    pairs = [(gold.value, prediction.value)]
    if gold.percent != prediction.percent:
        factor = Fraction(1, 100) if gold.percent else Fraction(100)
        pairs.append((gold.value * factor, prediction.value))
    return any(_equal(left, right) for left, right in pairs)


def same_time(gold: str, prediction: str) -> bool | None:
    """Whether two times of day are equal, where a missing a.m. or p.m. matches both; None if either is no time."""
    times = [_TIME.fullmatch(text) for text in (gold, prediction)]
    first, second = times
    if first is None or second is None:
        return None
    halves = {half.casefold() for half in (first[3], second[3]) if half}
    return (int(first[1]), first[2]) == (int(second[1]), second[2]) and len(halves) < 2


def choice_of(text: str) -> str | None:
    """Return the letter of a choice with its text, such as "B. 42" or "(B) 42", or of "(B)"; None for other texts."""
    found = _CHOICE.fullmatch(text)
    return (found[1] or found[3]).casefold() if found else None


def is_words(text: str) -> bool:
    """Whether a plain text is words, which are compared literally: algebra finds `seat` equal to `east`."""
    return _WORDS.fullmatch(text) is not None


def _equal(gold: Fraction, prediction: Fraction) -> bool:
    if gold == prediction:
        return True
    if _terminates(gold) == _terminates(prediction):
        return False
    return abs(gold - prediction) <= _TOLERANCE * min(Fraction(1), max(abs(gold), abs(prediction)))


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
