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
    r"(?:\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\degree(?![A-Za-z]))(?:\s*(?:\\text\s*\{\s*[CFK]\s*\}|[CFK](?![A-Za-z])))?"
)
_BRACED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol|bm|emph"
    r"|underline|ensuremath)\s*\{([^{}]*)\}"
)
_SWITCHES = re.compile(
    r"\\(?:bf|rm|it|displaystyle|textstyle|boldmath|large|Large|left|right|big|Big|bigg|Bigg)(?![A-Za-z])"
)
_TAG = re.compile(r"\\(?:tag|label)\s*\{[^{}]*\}")
_REWRITES = (
    (re.compile(r"\\,(?=\d{3}(?!\d))"), ""),  # thousands: 10\,000
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\\[,;: ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\#"), ""),
    (re.compile(r"\\([$%&])"), r"\1"),
    (DEGREES, ""),
    (re.compile(r"^\s*(?:\\approx|\\simeq|\\sim|≈|≃|\\therefore)\s*"), ""),
)
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DELIMITERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
)


def normalise(text: str) -> str:
    """Return the text with ordinary dashes and blanks, without invisible characters and end-of-turn token."""
    text = _END_TOKENS.sub("", text)
    text = INVISIBLE.sub("", text).translate(_DASHES)
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")


def unwrap(text: str) -> str:
    """Return the text without math delimiters, emphasis, quotes and closing punctuation around it."""
    text = normalise(text).strip()
    changed = True
    while changed:
        before = text
        text = text.rstrip(".,;: ").strip()
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
    return text.strip()


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
