"""Find the number, formula, list or equations that a sentence gives."""

import re

from cgd_ray.grading.normal import plain, unbraced, without_degrees
from cgd_ray.grading.numbers import NUMBER, WORDS
from cgd_ray.grading.quantities import quantity, same_quantity
from cgd_ray.grading.units import UNIT_AFTER
from cgd_ray.grading.vocabulary import FACTORS, LETTERS

COMPARED = re.compile(
    r"\b(?:less|greater|more|fewer|larger|smaller|bigger|higher|lower|older|younger)\s+than\b|\bat\s+(?:least|most)\b"
    r"|\b(?:up\s+to|between|above|below|over|under|beyond)\s+[-$€£\d]|\bor\s+(?:more|less|fewer|greater|higher|lower|above|below)\b",
    re.IGNORECASE,
)
MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$((?:\\\$|[^$])*?[^$\s\d.,](?:\\\$|[^$])*?)(?<!\\)\$(?!\d)|(?<![\w\\])\$(\d[\d.,/]*)\$"
)
_FACTOR = "|".join(sorted(FACTORS, key=len, reverse=True))
_ONE_NUMBER = re.compile(
    rf"(?:\b(?:minus|negative)\s+)?{NUMBER}(?:\s+(?:{_FACTOR})\b)?(?:{UNIT_AFTER})?", re.IGNORECASE
)
_ONE_IN_WORDS = re.compile(
    rf"(?:\b(?:minus|negative)\s+)?{WORDS.pattern}(?:\s+(?:{_FACTOR})\b)?(?:{UNIT_AFTER})?", re.IGNORECASE
)
_CHANGED = re.compile(
    r"\band\s+(?:an?|one|three)[\s-]+(?:half|halves|third|quarter)s?\b|"
    r"\d\s*(?:squared|cubed|factorial|halves|thirds|quarters"
    r"|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand|million)ths)\b",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|March|Mar|April|Apr|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
# March 3, 3 March and Room 5 are no numbers.
_LABELLED = re.compile(
    rf"\b{_MONTH}\s+\d{{1,2}}(?!\d)|\d(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}"
    r"|\b(?i:room|apartment|building|flight|gate|platform|chapter|locker|suite|route|terminal|figure|section)"
    r"\s+(?i:number\s+|no\.?\s+|#)?\d+\s*(?:$|[.,;)])"
)
_SCALED = re.compile(rf"(?P<money>[$€£]\s?\d[\d,]{{0,20}}(?:\.\d{{1,9}})?)(?P<letters>{'|'.join(LETTERS)})\b")
_EQUATION = r"[A-Za-z](?:_\{?\w{1,5}\}?)?\s{0,3}=\s{0,3}(?![\s=])[^=,;\n]{1,60}?"
_JOINER = r"\s{0,3}(?:[,;]\s{0,3}(?:(?:and|or)\s)?|\b(?:and|or)\s)\s{0,3}"
_SEVERAL = re.compile(rf"(?<![\w\\^.]){_EQUATION}{_JOINER}[A-Za-z](?:_\{{?\w{{1,5}}\}}?)?\s{{0,3}}=")
_ITEM = r"-?\d[\d./]{0,20}"
_LIST = re.compile(rf"{_ITEM}(?:{_JOINER}{_ITEM}){{1,20}}")
TIME = re.compile(r"(?<![\d:])\d{1,2}:\d{2}(?![\d:])(?:\s*[ap]\.?m\b)?", re.IGNORECASE)
_RELATION = re.compile(r"[A-Za-z]\s*[-+*/^]|[-+*/^]\s*[A-Za-z](?![A-Za-z])|\d[A-Za-z](?![A-Za-z])")
_VARIABLE = re.compile(r"(?<![^\W\d_])(?<![\\'])[A-Za-z](?![^\W\d_]|')|[\^_+*/()<>\d\\|≤≥±∓]|(?<=\S)\s-\s(?=\S)")
_ARTICLES = re.compile(r"\b(?:a|A|I|[ap]\.m|s)\b")


def formulas_of(phrase: str) -> list[str]:
    """Return the formulas between math delimiters."""
    return [next(filter(None, groups)).strip() for groups in MATH.findall(phrase)]


def sole_formula(clause: str) -> str | None:
    """Return the only formula of a clause without other numbers; None for others."""
    formulas = formulas_of(clause)
    if len(formulas) != 1 or COMPARED.search(clause) or _ONE_NUMBER.search(MATH.sub(" ", clause)):
        return None
    return formulas[0]


def only_number(sentence: str) -> str | None:
    """Return the only number of a sentence, which may repeat it; None for several numbers or a formula."""
    text = undelimited(sentence)
    if COMPARED.search(sentence) or _CHANGED.search(sentence) or _SEVERAL.search(text):
        return None
    *before, after_equals = re.split(r"(?<![<>!])=", text)
    if len(before) == 1 and _RELATION.search(before[0]):  # an equation of several unknowns: 5x - 7y = 0
        return None
    numbers = [match.group().strip() for match in _ONE_NUMBER.finditer(after_equals)]
    beside = _ARTICLES.sub(" ", _ONE_NUMBER.sub(" ", TIME.sub(" ", after_equals) if not numbers else after_equals))
    # Variables and operators beside the number make it a part of a formula, which is not the number.
    if _VARIABLE.search(beside) or _LABELLED.search(after_equals):
        return None
    if numbers:
        return numbers[0] if _are_same(numbers) else None
    if len(times := TIME.findall(after_equals)) == 1:
        return str(times[0])
    words = [found.group() for found in _ONE_IN_WORDS.finditer(after_equals)]
    return words[0] if words and _are_same(words) else None


def _are_same(numbers: list[str]) -> bool:
    found = [quantity(plain(number)) for number in numbers]
    first = found[0]
    return first is not None and all(
        other is not None and other.value == first.value and same_quantity(first, other) for other in found
    )


def equations_of(clause: str) -> str | None:
    """Return several equations of names with "and", "or" or a comma between them, to the clause's end; else None."""
    text = undelimited(clause)
    found = _SEVERAL.search(text)
    return text[found.start() :].strip() if found else None


def list_of(tail: str) -> str | None:
    """Return a text that is a list of numbers, such as "2, 3 and 5"; None for others."""
    text = undelimited(tail).strip()
    return text if _LIST.fullmatch(text) else None


def undelimited(text: str) -> str:
    """Return the text without math delimiters, emphasis and degree signs."""
    text = without_degrees(unbraced(text.replace("\\$", "$")))
    text = _SCALED.sub(lambda found: f"{found['money']} {LETTERS[found['letters']]}", text)
    return re.sub(r"\\[()\[\]]|\$(?=[^\d\s])|(?<=[\d}])\$|\*\*", " ", text)
