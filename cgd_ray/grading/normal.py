"""Unify the spelling of texts: dashes, blanks, full-width digits, superscripts, formatting."""

import re
import unicodedata

_DASHES = dict.fromkeys(map(ord, "\N{MINUS SIGN}\N{EN DASH}\N{FIGURE DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}"), "-")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_GREEK = {
    "π": r"\pi ",
    "θ": r"\theta ",
    "∞": r"\infty ",
    "√": r"\sqrt",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "\u222a": r"\cup ",
}
INVISIBLE = re.compile(r"[\u200b-\u200f\u2060\ufeff\u00ad]")
_END_TOKENS = re.compile(r"(?:<\|(?:endoftext|im_end|eot_id|end_of_text|end)\|>|</s>|<eos>|<end_of_turn>)\s*$")

DEGREES = re.compile(
    r"(?:\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree(?![A-Za-z]))"
    r"(?:\s*(?:\\(?:text|mathrm)\s*\{\s*(?P<braced>[CFK])\s*\}|(?P<bare>[CFK])(?![A-Za-z])))?"
)
_SCALES = {"C": " degrees Celsius ", "F": " degrees Fahrenheit ", "K": " Kelvin "}
_BRACED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol|bm|emph"
    r"|underline|ensuremath)\s*\{([^{}]*)\}"
)
_SWITCHES = re.compile(
    r"\\(?:bf|rm|it|displaystyle|textstyle|boldmath|large|Large|left|right|big|Big|bigg|Bigg)(?![A-Za-z])"
)
_TAG = re.compile(r"\\(?:tag|label)\s*\{[^{}]*\}")
_REWRITES = (
    (re.compile(r"\\\\\s*\[\s*-?[\d.]{1,9}\s*[a-z]{2}\s*\]"), r"\\\\"),  # a row's distance to the next: \\[4pt]
    (re.compile(r"(?<!\\)\\,(?=\d{3}(?!\d))"), ""),  # thousands: 10\,000
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:textcolor|color|colorbox)\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\([gln]e)q(?:slant)?(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\varnothing(?![A-Za-z])|∅"), r"\\emptyset"),
    (re.compile(r"₹\s?(?=\d)"), "Rs "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\#"), ""),
    (re.compile(r"\\([$%&])"), r"\1"),
    (re.compile(r"^\s*(?:\\approx|\\simeq|\\sim|≈|≃|\\therefore|=(?!=))\s*"), ""),
    (re.compile(r"(?<=[A-Za-z)])\s?(?:\\approx(?![A-Za-z])|≈)"), " = "),
)
_REPEATING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9})\\overline\s*(?:\{\s*(\d{1,9})\s*\}|(\d))")
_VULGAR = re.compile(r"(?P<whole>\d)?(?P<part>[¼½¾⅐-⅞])")
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DELIMITERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
)


def normalise(text: str) -> str:
    """Return the text with ordinary dashes and blanks, without invisible characters and end-of-turn token."""
    text = _END_TOKENS.sub("", text)
    text = INVISIBLE.sub("", text).translate(_DASHES)
    text = text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    return _VULGAR.sub(_in_digits, text)


def _in_digits(found: re.Match[str]) -> str:
    """Return a fraction in one character, such as ½, as 1/2, after a blank if a digit precedes it."""
    fraction = unicodedata.normalize("NFKC", found["part"]).replace("\N{FRACTION SLASH}", "/")
    return f"{found['whole']} {fraction}" if found["whole"] else fraction


def without_degrees(text: str) -> str:
    """Return the text without degree signs, but with the name of the scale after one: 25 degrees Celsius."""
    return DEGREES.sub(lambda found: _SCALES.get(found["braced"] or found["bare"] or "", ""), text)


def _as_fraction(found: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction."""
    whole, fixed, repeated = found[1] or "0", found[2], found[3] or found[4]
    under = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    over = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{over}}}{{{under}}}"


def unwrap(text: str) -> str:
    """Return the text without math delimiters, emphasis, quotes and closing punctuation around it."""
    text = normalise(text).strip()
    changed = True
    while changed:
        before = text
        shorter = text.rstrip(".,;: ")
        if shorter.endswith("\\") and not shorter.endswith("\\\\"):  # a command for a blank, as in 7\,
            shorter = shorter[:-1]
        text = shorter.strip()
        for left, right in _DELIMITERS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
                text = text[len(left) : -len(right)].strip()
        changed = text != before
    return text


def latex(text: str) -> str:
    """Return the text as LaTeX that algebra can parse: no formatting, superscripts as powers, symbols as commands."""
    text = _RAISED.sub(lambda raised: f"^{{{raised.group().translate(_SUPERSCRIPTS)}}}", unwrap(text))
    text = unicodedata.normalize("NFKC", text)
    for symbol, command in _GREEK.items():
        text = text.replace(symbol, command)
    text = _TAG.sub("", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _REPEATING.sub(_as_fraction, without_degrees(text)).strip()


def unbraced(text: str) -> str:
    r"""Return the text with `\frac{a}{b}` as a/b, and with only the content of `\text{}` and similar commands."""
    for _ in range(3):  # nested commands
        text = _BRACED.sub(r" \1 ", text)
    return _FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]} ", text)


def plain(text: str) -> str:
    r"""Return the text as a person would type it: no `\text{}`, no spacing commands, `\frac{a}{b}` as a/b."""
    text = _SWITCHES.sub(" ", unbraced(latex(text))).replace("{}", "")
    text = re.sub(r"^\{(.*)\}$", r"\1", text.strip())
    text = unwrap(re.sub(r"\s+([.,;:)\]])", r"\1", " ".join(text.split())))
    return text.replace(" ", "") if _SPACED_THOUSANDS.fullmatch(text) else text
