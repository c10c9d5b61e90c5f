"""Plain answers: numbers with or without a unit, times of day, choices, and words.

Most answers are one of these and need no algebra to be compared.
"""

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from cgd_ray.grading.numbers import NUMBER, WORDS, value_of, value_of_words
from cgd_ray.grading.units import Measure, denominator, measure_of, ratio_of, same_measure
from cgd_ray.grading.vocabulary import (
    COUNTED,
    CURRENCIES,
    FACTORS,
    FILLERS,
    HEDGES,
    LETTERS,
    MATHEMATICAL,
    SIGNS,
    SINGULARS,
    UNITS,
)

_LONGEST = 200  # characters: longer text is no number with a unit

_WORD = r"[^\W\d_]+(?:[./][^\W\d_]+)*"
_QUANTITY = re.compile(
    rf"(?P<before>(?:{_WORD}\.?\s+){{0,2}})(?P<number>{NUMBER})(?P<glue>\s*[-]?)"
    rf"(?P<after>(?:'{{1,2}}|\"|¢|₹|元|{_WORD})(?:[\s/·*-]+{_WORD}|\s*\^\s*\{{?-?\d\}}?|[²³]|[23](?!\d))*)?"
)
_PARENTHESIS = re.compile(r"\s*\(\s*(?:[^\W\d_]{2,}[^()\d]*|[^()\d]*[^\W\d_]{3,}[^()\d]*)\)")
_WORDS = re.compile(r"[^\W\d_]{3,}|[A-Z]{2}|(?i:no|on|up|ok|he|us|it)|[^\W\d_]+(?:[ ,'-]+[^\W\d_]+)+")
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2})\s*(?:(?P<half>[ap])\.?(?:m\.?)?)?|\s*(?P<only>[ap])\.?m\.?)", re.IGNORECASE
)
_SCALED = re.compile(
    rf"(?P<number>[-+]?\s?[$€£]?\s?\d[\d,]*(?:\.\d+)?)(?:(?P<glued>{'|'.join(LETTERS)})|\s(?P<apart>k))(?P<rest>\s.*)?",
    re.DOTALL,
)
_SIGNED = re.compile(r"(?:minus|negative)\s+(?=[a-z])", re.IGNORECASE)
_CHOICE = re.compile(
    r"\(([A-Ja-j])\)(?:[\s:.,]+(?P<text>.+))?|([A-Ja-j])(?:[).:]\s*|\s*[):]\s+)(?P<more>\S.*)", re.DOTALL
)
_DIFFERENCE = re.compile(r"[a-z](?:\s?-\s?[a-z])+")
_ALTERNATIVE = re.compile(r"^\W*(?:or|and)\b|\([A-J]\)|^\W*[A-J]\W*$")
# Decimals equal a non-terminating fraction from six places on.
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class Quantity:
    """A rational number as written in a text."""

    value: Fraction
    units: frozenset[str]
    """The words beside it that are no units of measure; empty if there are none."""
    percent: bool
    currency: str = ""
    """`$`, `€`, `£` or `cent`; empty if none is named."""
    measure: Measure = field(default_factory=dict)
    """Its unit of measure."""


def without_remark(text: str) -> str:
    """Return the text without words in parentheses, as in 9 (apples), 5 (approximately)."""
    shorter = _PARENTHESIS.sub("", text).strip()
    return shorter or text


def quantity(text: str) -> Quantity | None:
    """Parse a plain text that is a number, alone or beside words; None for any other text."""
    if len(text) > _LONGEST:
        return None
    if signed := _SIGNED.match(text):
        found = quantity(text[signed.end() :])
        return None if found is None or found.value < 0 else replace(found, value=-found.value)
    if scaled := _SCALED.fullmatch(text):
        text = f"{scaled['number']} {LETTERS[scaled['glued'] or 'k']}{scaled['rest'] or ''}"
    match = _QUANTITY.fullmatch(text)
    if match is None:
        value = value_of_words(text)
        return _in_words(text) if value is None else Quantity(value, frozenset(), percent=False)
    before, after = match["before"].casefold().split(), _words(match["after"])
    value = value_of(match["number"])
    if value is None or not _fit(before, after, is_glued=match["glue"] == ""):
        return None
    return _quantity(value, [*before, *after], match["number"], f"{match['before']} {match['after'] or ''}")


def _in_words(text: str) -> Quantity | None:
    """Parse a number in words at the beginning, with a unit: "twelve apples"."""
    found = WORDS.match(text)
    rest = text[found.end() :] if found else ""
    after = _words(rest)
    value = value_of_words(found.group()) if found else None
    if value is None or not are_units(after) or re.search(r"\d", text):
        return None
    return _quantity(value, after, "", rest)


def _quantity(value: Fraction, words: list[str], number: str, beside: str) -> Quantity:
    """Return the quantity of a number and the words beside it, which `beside` has as written."""
    for word in words:
        value *= FACTORS.get(word, 1) * SIGNS.get(word, 1)
    measure, named = measure_of(beside)
    named = [word for word in named if word not in FACTORS and word not in SIGNS and word not in HEDGES]
    singular = [SINGULARS.get(word, word if len(word) < 4 else word.removesuffix("s")) for word in named]
    currency = next((sign for sign in "$€£" if sign in number), "") or next(
        (CURRENCIES[word] for word in [*singular, *words] if word in CURRENCIES), ""
    )
    others = frozenset(
        word for word in singular if word not in {"percent", "percentage"} and word not in {*CURRENCIES, *FILLERS}
    )
    return Quantity(value, others, "%" in number or "%" in words, currency, measure)


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
    text = (text or "").casefold().replace("percentage", "%").replace("percent", "%")
    return [word for word in re.split(r"[\s/·*]+|(?<=[^\W\d_])(?=[\^²³23])", text) if word]


def same_quantity(gold: Quantity, prediction: Quantity) -> bool:
    """Whether two quantities are equal: exactly, except for decimals of a non-terminating fraction.

    Units differ only if both sides name some. With a percent sign on one side only, 25% is both 25 and 0.25, since
    questions ask for either, but 0.25% is not 0.25.
    """
    gold = _converted(gold, prediction)
    if _units_differ(gold, prediction):
        return False
    if gold.percent == prediction.percent:
        return _equal(gold.value, prediction.value)
    signed, bare = (gold, prediction) if gold.percent else (prediction, gold)
    return _equal(signed.value / 100, bare.value) or (abs(bare.value) >= 1 and _equal(signed.value, bare.value))


def _converted(gold: Quantity, prediction: Quantity) -> Quantity:
    """Return the gold quantity in the prediction's unit, if both are of one kind, as dollars and cents are."""
    if {gold.currency, prediction.currency} == {"$", "cent"} and not (gold.measure or prediction.measure):
        factor = Fraction(100) if gold.currency == "$" else Fraction(1, 100)
        return replace(gold, value=gold.value * factor, currency=prediction.currency)
    ratio = ratio_of(gold.measure, prediction.measure)
    is_plain = not (gold.currency or prediction.currency)
    return (
        gold if ratio is None or not is_plain else replace(gold, value=gold.value * ratio, measure=prediction.measure)
    )


def _units_differ(gold: Quantity, prediction: Quantity) -> bool:
    if (prediction.units - gold.units) & COUNTED:
        return True
    if gold.currency and prediction.currency:
        rates = denominator(gold.measure), denominator(prediction.measure)
        return gold.currency != prediction.currency or (all(rates) and rates[0] != rates[1])
    if any(_is_other_kind(one, other) for one, other in ((gold, prediction), (prediction, gold))):
        return True
    if gold.measure and prediction.measure and not (gold.currency or prediction.currency):
        return not same_measure(gold.measure, prediction.measure)
    if gold.measure or prediction.measure:
        return False
    return bool(gold.units and prediction.units) and not gold.units & prediction.units


def _is_other_kind(one: Quantity, other: Quantity) -> bool:
    """Whether one is money or has a unit, and the other is a percentage or another kind of thing."""
    if other.percent and not one.percent and (one.currency or one.measure):
        return True
    if other.currency:
        return False
    if one.currency:
        return any(exponent > 0 for exponent in other.measure.values()) and not _is_weight(one, other)
    return bool(one.measure and other.units and not other.measure)


def _is_weight(money: Quantity, weight: Quantity) -> bool:
    """Whether "pounds" means the weight that the other side names."""
    return money.currency == "£" and weight.measure == {"lb": 1}


def same_time(gold: str, prediction: str) -> bool | None:
    """Whether two times of day are equal, where a missing a.m. or p.m. matches both; None if either is no time."""
    times = [_TIME.fullmatch(text) for text in (gold, prediction)]
    first, second = times
    if first is None or second is None:
        is_clear = any(time is not None and (time["minute"] or "").startswith("0") for time in times)
        return False if is_clear and any(re.fullmatch(r"\d+:\d", text) for text in (gold, prediction)) else None
    (hour, minute, half), (other_hour, other_minute, other_half) = _clock(first), _clock(second)
    return (hour, minute) == (other_hour, other_minute) and (half == other_half or not (half and other_half))


def _clock(time: re.Match[str]) -> tuple[int, int, str]:
    """Return the hour up to 12, the minute, and `a`, `p` or nothing."""
    hour, half = int(time["hour"]), (time["half"] or time["only"] or "").casefold()
    if hour > 12 and not half:
        hour, half = hour - 12, "p"
    return hour, int(time["minute"] or 0), half


def choice_of(text: str) -> str | None:
    """Return the letter of a choice with its text, such as "B. 42" or "(B) 42", or of "(B)"; None for other texts."""
    found = _CHOICE.fullmatch(text)
    if found is None or _ALTERNATIVE.search(found["text"] or found["more"] or ""):
        return None
    return str(found[1] or found[3]).casefold()


def text_of_choice(text: str) -> str:
    """Return the text of a choice, such as Paris of "B. Paris"; empty if it has none."""
    found = _CHOICE.fullmatch(text)
    return (found["text"] or found["more"] or "").strip() if found and choice_of(text) else ""


def is_words(text: str) -> bool:
    """Whether a plain text is words, which are compared literally: algebra finds `seat` equal to `east`."""
    return _WORDS.fullmatch(text) is not None and not _DIFFERENCE.fullmatch(text)


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
