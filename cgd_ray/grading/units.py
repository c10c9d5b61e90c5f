"""Parse the unit of measure that the words after a number form: minutes, km/h, square feet, kg m^2."""

import re
from fractions import Fraction

_NAMES = {
    "m": "meter metre", "km": "kilometer kilometre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "s": "second sec", "min": "minute min", "h": "hour hr", "ms": "millisecond", "day": "day", "week": "week",
    "month": "month", "yr": "year yr", "decade": "decade", "century": "century centuries",
    "g": "gram gm", "kg": "kilogram kilo kg", "mg": "milligram", "ton": "ton tonne", "lb": "lb", "oz": "ounce",
    "l": "liter litre", "ml": "milliliter millilitre", "gal": "gallon", "quart": "quart", "pint": "pint",
    "acre": "acre", "ha": "hectare",
    "W": "watt", "mW": "milliwatt", "kW": "kilowatt", "MW": "megawatt", "V": "volt", "A": "ampere amp",
    "N": "newton", "J": "joule", "kJ": "kilojoule", "Pa": "pascal", "Hz": "hertz", "C": "coulomb", "F": "farad",
    "K": "kelvin", "celsius": "celsius", "fahrenheit": "fahrenheit", "deg": "degree", "rad": "radian", "mol": "mole",
    "byte": "byte", "am": "am a.m", "pm": "pm p.m",
}  # fmt: skip
_SYMBOLS = """
m km cm mm nm um dm ft yd mi g kg mg Mg ug lb oz s ms ns h l ml cl dl gal N kN J kJ MJ W mW kW MW GW V mV kV MV A mA Pa
kPa MPa hPa Hz kHz MHz GHz K C F mol eV keV MeV GeV deg rad ha kWh KB MB GB TB
"""
_COMPOUND = {
    "mph": {"mi": 1, "h": -1}, "kmh": {"km": 1, "h": -1}, "kph": {"km": 1, "h": -1}, "sqft": {"ft": 2},
    "cc": {"cm": 3}, "L": {"l": 1}, "mL": {"ml": 1}, "lbs": {"lb": 1}, "''": {"in": 1}, '"': {"in": 1}, "'": {"ft": 1},
}  # fmt: skip

Measure = dict[str, int]
"""Exponents of units: `{"km": 1, "h": -1}` for km/h."""

_LONG = {spelling: unit for unit, spellings in _NAMES.items() for spelling in spellings.split()}
_EXACT: dict[str, Measure] = {symbol: {symbol: 1} for symbol in _SYMBOLS.split()} | _COMPOUND
_ANY_CASE: dict[str, Measure] = {}
for _symbol, _measure in _EXACT.items():
    if _symbol != "A":  # an article
        _ANY_CASE.setdefault(_symbol.casefold(), _measure)

_TOKEN = re.compile(r"'{1,2}|\"|/|\^?\s*\{?\s*(?P<power>-?\d)\s*\}?|[^\W\d_]+(?:\.[^\W\d_]+)*")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_PER = {"/", "per", "a", "an", "each", "every"}
# "5 hours a week" answers "how many hours?", but "5 m/s" does not answer "how many metres?".
_PERIODS = {"day", "week", "month", "yr"}
_ALIKE = ({"C", "celsius"}, {"F", "fahrenheit"}, {"deg", "celsius"}, {"deg", "fahrenheit"}, {"K", "deg"})

# Each unit's size in the smallest one of its line.
_SIZES = (
    {"mm": 1, "cm": 10, "m": 1000, "km": 10**6}, {"in": 1, "ft": 12, "yd": 36, "mi": 63360},
    {"s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800}, {"mg": 1, "g": 1000, "kg": 10**6},
    {"oz": 1, "lb": 16}, {"ml": 1, "l": 1000},
)  # fmt: skip

_WORD = "|".join(
    sorted((f"{name}s?".replace(".", r"\.") for name in _LONG if name not in {"am", "pm"}), key=len, reverse=True)
)
# Single letters that are mostly variables or articles, and "in", are units only in a text that is nothing else.
_SYMBOL = "|".join(sorted((s for s in _EXACT if s.isalpha() and (len(s) > 1 or s in "mgshlL")), key=len, reverse=True))
_UNIT = (
    rf"(?:(?:square|cubic|sq|cu)\.?\s+)?(?:degrees?\s+(?:celsius|fahrenheit)|{_WORD}|[ap]\.?m|dollars?|cents?|euros?|pounds?"
    rf"|percent(?:age)?|pairs?(?!\s+of\b)|(?-i:{_SYMBOL}))(?![\w'])(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?"
)
UNIT_AFTER = rf"(?:\s*-?(?:¢|{_UNIT}(?:\s*(?:/|\bper\b|\ban?\b)\s*{_UNIT})?))"
"""A unit directly after a number in a sentence, for a pattern that ignores case."""


def measure_of(text: str) -> tuple[Measure, list[str]]:
    """Return the unit that the words beside a number form, and the words that are no unit."""
    measure: Measure = {}
    words: list[str] = []
    sign, power, last = 1, 1, ""
    tokens = list(_TOKEN.finditer(text.replace("²", "^2").replace("³", "^3")))
    for token, following in zip(tokens, [*tokens[1:], None], strict=False):
        word = token.group().casefold()
        if token["power"]:
            if last:
                measure[last] += sign * (int(token["power"]) - 1)
        elif word in _POWERS:
            power = _POWERS[word]
        elif word in _PER and token.group() != "A":
            sign = -1
        else:
            unit = _unit(token.group(), is_last=following is None or following["power"] is not None)
            for name, exponent in unit.items():
                measure[name] = measure.get(name, 0) + sign * power * exponent
            words += [] if unit else [word]
            power, last = 1, next(iter(unit), "")
    return _simplified(measure), words


def _simplified(measure: Measure) -> Measure:
    is_scale = "celsius" in measure or "fahrenheit" in measure  # degrees Celsius
    return {name: exponent for name, exponent in measure.items() if exponent and not (is_scale and name == "deg")}


def _unit(word: str, *, is_last: bool) -> Measure:
    lower = word.casefold()
    if lower == "in":
        return {"in": 1} if is_last else {}  # "5 in total"
    if name := _LONG.get(lower) or _LONG.get(lower.removesuffix("s")) or _LONG.get(lower.rstrip(".")):
        return _EXACT.get(word, {name: 1})
    return _EXACT.get(word) or _ANY_CASE.get(lower, {})


def ratio_of(left: Measure, right: Measure) -> Fraction | None:
    """Return how many of the right unit the left one is: 60 for hours and minutes; None if they are not alike."""
    if list(left.values()) != [1] or list(right.values()) != [1]:
        return None
    (one,), (other,) = left, right
    return next((Fraction(sizes[one], sizes[other]) for sizes in _SIZES if one in sizes and other in sizes), None)


def same_measure(left: Measure, right: Measure) -> bool:
    """Whether two units are equal; one side may leave out "per day" or a longer period."""
    if left == right:
        return True
    if _is_rate(left) != _is_rate(right):
        left, right = (
            {name: exponent for name, exponent in side.items() if exponent > 0 or name not in _PERIODS}
            for side in (left, right)
        )
    if left == right:
        return True
    return list(left.values()) == list(right.values()) == [1] and {*left, *right} in _ALIKE


def denominator(measure: Measure) -> Measure:
    """Return the part of a unit after "per"."""
    return {name: exponent for name, exponent in measure.items() if exponent < 0}


def _is_rate(measure: Measure) -> bool:
    return any(exponent < 0 for exponent in measure.values())
