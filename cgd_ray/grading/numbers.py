"""Parse numbers in texts: digits, fractions, powers of ten, and words; their values are exact."""

import re
from fractions import Fraction

from cgd_ray.grading.vocabulary import FACTORS, PARTS, SCALES, SMALL, TENS

_LARGEST_EXPONENT = 5000  # larger powers of ten are not computed, and have no value

_PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_TIMES = r"(?:\\times|\\cdot|[x*\u00d7\u00b7])"
_EXPONENT = r"(?:\{\s*[-+]?\s*\d+\s*\}|\(\s*[-+]?\d+\s*\)|[-+]?\d+)"
_POWER = rf"(?:[eE][-+]?\d+|\s*{_TIMES}\s*10\s*(?:\^|\*\*)\s*{_EXPONENT})"
# Not a number: the 2 of x2, 2x, x-2 and 12:30. A unit may follow directly (18mph); it is checked later.
NUMBER = (
    r"(?<![\w.,:/^])(?<![A-Za-z)]-)(?:[-+]\s?)?(?:[$€£]\s?)?(?:[-+](?=[\d.]))?"
    rf"(?:\d+\s+(?:and\s+)?\d+/\d+|\d+/\d+|10\s*\^\s*(?:\{{\s*-?\d+\s*\}}|-?\d+)|(?:{_PLAIN}){_POWER}|{_PLAIN})"
    r"(?![\d/:^]|[.,]\d|[A-Za-z](?![A-Za-z])|\s?(?:\\[a-z]|[\u0370-\u03ff]))(?:\s?%)?"
)
_MIXED = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>\d+)\s+(?:and\s+)?)?(?P<over>\d+)/(?P<under>\d+)")
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<digits>\d+(?:\.\d+)?|\.\d+)(?:[eE]|\s*{_TIMES}\s*10\s*(?:\^|\*\*)))?"
    r"(?:10\s*\^)?\s*[{(]?\s*(?P<exponent>[-+]?\s*\d+)\s*[)}]?"
)

_ONES = {word: number for number, word in enumerate(SMALL)} | {
    word: 10 * number for number, word in enumerate(TENS, start=2)
}
_SCALES = {name: FACTORS[name] for name in SCALES}
_WORD = "|".join(sorted([*_ONES, *_SCALES], key=len, reverse=True))
WORDS = re.compile(
    rf"\b(?:{_WORD})(?:(?:[\s-]+(?:and[\s-]+)?)(?:{_WORD}))*(?:[\s-]+(?:{'|'.join(PARTS)}|halve)s?)?\b", re.IGNORECASE
)
"""A number in words: "five", "twenty-five", "two hundred and ten"."""


def value_of(number: str) -> Fraction | None:
    """Return the value of a match of `NUMBER`, without its percent sign; None if it is too large or has no value."""
    text = re.sub(r"[$€£%,]|(?<=[-+])\s", "", number).strip()
    try:
        if mixed := _MIXED.fullmatch(text):
            value = Fraction(int(mixed["over"]), int(mixed["under"])) + int(mixed["whole"] or 0)
            return -value if mixed["sign"] == "-" else value
        if "^" in text or "*" in text or re.search(r"[eE]", text):
            return _scientific(text)
        return Fraction(text)
    except (ValueError, ZeroDivisionError):  # such as --5
        return None


def _scientific(text: str) -> Fraction | None:
    found = _SCIENTIFIC.fullmatch(text)
    if found is None:
        return None
    exponent = int(found["exponent"].replace(" ", ""))
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = Fraction(found["digits"] or 1) * Fraction(10) ** exponent
    return -value if found["sign"] == "-" else value


def value_of_words(text: str) -> Fraction | None:
    """Return the value of a number in words, such as "twenty-five", "two thirds" or "one half"; None for others."""
    words = [word for word in re.split(r"[\s-]+", text.strip().casefold()) if word != "and"]
    if not words:
        return None
    if words[0] in {"a", "an"} and words[1:] and words[1] in _SCALES:  # a hundred
        words = words[1:]
    if words == ["a", "dozen"]:
        return Fraction(12)
    under = PARTS.get(words[-1].removesuffix("s").replace("halve", "half"))
    if under is not None and len(words) > 2 and words[-2] in {"a", "an"}:  # two and a half
        whole = _whole(words[:-2])
        return None if whole is None else whole + Fraction(1, under)
    if under is not None:
        over = Fraction(1) if words[:-1] in ([], ["a"], ["an"]) else _whole(words[:-1])
        return None if over is None else over / under
    return _whole(words)


def _whole(words: list[str]) -> Fraction | None:
    total = group = 0
    for word in words:
        if word in _ONES:
            group += _ONES[word]
        elif word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                group = max(group, 1) * scale
            else:
                total, group = total + max(group, 1) * scale, 0
        else:
            return None
    return Fraction(total + group)
