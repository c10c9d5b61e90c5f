"""Answers that are formulas: which ones algebra can compare, and which side of an equation is the answer."""

import re

from cgd_ray.grading.normal import latex
from cgd_ray.grading.quantities import are_units

_NAME = re.compile(
    r"\([A-Za-z](?:\s*,\s*[A-Za-z])+\)|[A-Za-w](?:\^\{?-1\}?)?\(\s*-?\d[\d.,/\s-]{0,20}\)|P\([^()=]{1,60}\)"
    r"|\\[dt]?frac\{d[A-Za-z]?\}\{d[A-Za-z]\}|\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\[a-z]{2,8}|[A-Za-z])"
    r"|\\?[A-Za-z]{1,12}'{0,2}(?:_(?:\{[^{}]*\}|\w))?(?:\([A-Za-z, ]*\))?'?|\|[A-Za-z]{1,3}\|"
    r"|\\(?:angle|triangle|overline)\s*[{ ]?\s*[A-Z]{1,4}\}?"
    r"|(?:\\text|\\mathrm)?\{?[A-Za-z ]{1,40}\}?|m\s*\\angle\s*[A-Z]{1,3}|\$[A-Za-z]\$"
)
_NUMERIC = re.compile(
    r"[\d\s.,+*/()^{}!-]|\\log_(?=[\d{])"
    r"|\\(?:times|cdot|frac|d?binom|ln|log|div|sqrt|left|right|dfrac|tfrac)(?![A-Za-z])"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "arcsin", "arccos", "arctan", "and", "or",
    "max", "min", "mod", "gcd", "lcm", "det", "lim", "inf", "pi", "deg",
}  # fmt: skip
_MEMBERS = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|[,;\n]", re.IGNORECASE)
_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|mbox|textrm)\s*\{\s*(?P<braced>[^{}]*)\}|\s(?P<bare>[A-Za-z]{2,}(?:\s+[A-Za-z]{2,})*))"
    r"\s*(?:\^\s*\{?[23]\}?)?\s*$"
)
_JOINED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", re.IGNORECASE)


def side_of(answer: str) -> str | None:
    """Return the value of an answer: 5 for `x = 5`, `f(x) = 5`, `5 = x`, `2 + 3 = 5`; None for relations (`x + y = 5`).

    An answer without an equals sign is returned unchanged.
    """
    members = [member for member in _MEMBERS.split(answer) if member.strip()]
    if len(members) > 1 and all("=" in member for member in members):  # x = 1 or x = 2
        sides = [side_of(member) for member in members]
        return None if None in sides else ", ".join(side or "" for side in sides)
    parts = [part.strip() for part in re.split(r"(?<![<>!\\])=", answer.strip("$ "))]
    return answer if len(parts) == 1 else _side(parts)


def _side(parts: list[str]) -> str | None:
    names = [_NAME.fullmatch(part) is not None for part in parts]
    if not all(parts) or all(names):
        return None
    if names[-1]:
        return parts[0] if len(parts) == 2 else None
    others = [part for part, is_name in zip(parts, names, strict=True) if not is_name]
    is_computed = all(not _NUMERIC.sub("", part) for part in others[:-1])
    return parts[-1] if is_computed and not _differ(others) else None


def _differ(parts: list[str]) -> bool:
    """Whether an equation equates different plain numbers: 42 = 43 states no answer."""
    numbers = {part.replace(",", "") for part in parts if re.fullmatch(r"-?[\d,.]+", part)}
    return len(numbers) > 1


def without_unit(answer: str) -> str:
    r"""Return a formula without the unit after it, such as the `\text{ cm}^2` of `2\sqrt{3}\text{ cm}^2`."""
    found = _UNIT.search(answer)
    if found is None or not are_units((found["braced"] or found["bare"]).split()):
        return answer
    return answer[: found.start()].strip() or answer


def has_unknown(answer: str) -> bool:
    """Whether a formula contains letters for unknowns; e and i are numbers."""
    return re.search(r"[a-df-hj-zA-Z]", _COMMAND.sub(" ", answer)) is not None


def is_mathematical(plain: str, longest_name: int = 2) -> bool:
    """Whether a plain answer can be a formula: no words except names of functions and points."""
    words = re.findall(rf"[^\W\d_]{{{longest_name + 1},}}", _COMMAND.sub(" ", plain))
    return all(word.casefold() in _FUNCTIONS or word.isupper() for word in words) or "\\begin" in plain


def for_algebra(answer: str) -> str:
    """Return the answer in the form that math-verify parses best: alternatives as a list, no unit or text commands."""
    text = _JOINED.sub(",", without_unit(latex(answer)))
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|boldsymbol|textit)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(?:bf|rm|it|displaystyle)(?![A-Za-z])", " ", text)
    return re.sub(r",\s*,", ",", text).strip()
