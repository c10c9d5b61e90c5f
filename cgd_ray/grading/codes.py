"""Compare texts that look like formulas but are not: numerals with a base, codes, chemical formulas, dates."""

import re

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = r"(?P<month>[a-z]{3,9})\.?"
_DATES = (
    re.compile(rf"{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"),
    re.compile(rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}}))?"),
)
_BASED = re.compile(r"(?P<digits>[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)_\{?(?P<base>\d{1,2})\}?")
_CODE = re.compile(
    r"\d+(?:-\d+){2,}|\d{3,}-\d{3,}|\d+(?:\.\d+){2,}|\d+(?:/\d+){2,}"  # dates, telephone numbers, addresses
    r"|0[xX][0-9A-Fa-f]+|0b[01]+|0o[0-7]+"
    r"|\d+(?:\.\d+)?(?: \d+(?:\.\d+)?)+"  # orders: 3 2 1
    r"|\d+(?::\d+){2,}"
)
_CHEMICAL = re.compile(r"(?=[^\d]*\d)(?:[A-Z][a-z]?\d*){2,20}")
_PRIME = re.compile(r"'|\\prime(?![A-Za-z])")
_TRANSPOSED = re.compile(r"\^\s*\{?\s*(?:T|\\top|\\intercal|\\dagger|\\ast|\*|H)(?![A-Za-z])")


def date_of(text: str) -> tuple[int, int, int] | None:
    """Return the year (0 if there is none), month and day of a date with a month's name; None for other texts."""
    for pattern in _DATES:
        found = pattern.fullmatch(text.casefold())
        if found is None:
            continue
        months = [place for place, name in enumerate(_MONTHS, start=1) if name.startswith(found["month"])]
        if len(months) == 1:
            return int(found["year"] or 0), months[0], int(found["day"])
    return None


def same_code(gold: str, prediction: str) -> bool | None:
    """Compare two plain texts of which one is a code or date, as written; None if neither is one.

    A reference's base need not be repeated: `42` answers `42_5`.
    """
    dates = date_of(gold), date_of(prediction)
    if any(dates):
        return dates[0] == dates[1]
    bases = _BASED.fullmatch(gold), _BASED.fullmatch(prediction)
    if any(base is not None and _is_numeral(base["digits"]) for base in bases):
        wanted, given = (
            (base["digits"].casefold(), base["base"]) if base else (text.casefold(), "")
            for base, text in zip(bases, (gold, prediction), strict=True)
        )
        return wanted[0] == given[0] and (wanted[1] == given[1] or (bool(wanted[1]) and not given[1]))
    if _CODE.fullmatch(gold) or _CODE.fullmatch(prediction):
        return False
    formulas = [re.sub(r"[_{}\s]", "", text) for text in (gold, prediction)]
    if all(_CHEMICAL.fullmatch(formula) for formula in formulas):
        return formulas[0] == formulas[1]
    return None


def _is_numeral(digits: str) -> bool:
    return digits[0].isdigit() or re.fullmatch(r"[0-9A-F.]{2,}", digits) is not None


def differs_in_marks(gold: str, prediction: str) -> bool:
    """Whether two formulas differ in what algebra ignores: primes, transposition, the brackets of a set or a tuple."""
    kinds = _bracket(gold), _bracket(prediction)
    if "{" in kinds and ("(" in kinds or "[" in kinds):
        return True
    return any(len(mark.findall(gold)) != len(mark.findall(prediction)) for mark in (_PRIME, _TRANSPOSED))


def _bracket(text: str) -> str:
    r"""Return the bracket around a list, `{` for `\{1, 2\}`; empty if none encloses the whole text."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = re.sub(r"\s", "", text)
    depth = 0
    for place, bracket in enumerate(pieces := re.findall(r"\\[{}]|.", text)):
        depth += (bracket in {"(", "[", "\\{"}) - (bracket in {")", "]", "\\}"})
        if depth == 0:
            is_whole = place == len(pieces) - 1 and place > 0 and "," in text
            return pieces[0][-1] if is_whole else ""
    return ""
