"""Where a text says what its answer is: a box, a marked line, a stated sentence."""

import re

from cgd_ray.grading.quantities import NUMBER, unwrap

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_MARKED = re.compile(r"^\s*#{4}\s*(\S.*?)\s*$", re.MULTILINE)
# "The answer is 5", "Answer: 5", "final answer for part b is: 5"; the words between are kept short so that
# "the answer depends on ... and x is" is none.
_STATED = re.compile(r"\banswer\b[^.\n:=]{0,40}?(?:\bis\b(?!\s+not\b)|[:=])[\s:*]*(?=[^\s:*])", re.IGNORECASE)
_DENIED = re.compile(r"\bnot\b|n't\b|n\N{RIGHT SINGLE QUOTATION MARK}t\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$]*[^$\s\d.,][^$]*)\$")
_ONE_NUMBER = re.compile(
    rf"(?:\b(?:minus|negative)\s+)?{NUMBER}(?:\s+(?:hundred|thousand|million|billion|dozen)\b)?", re.IGNORECASE
)
# A reference without any mark is its own answer only where it could be one.
_LONGEST_BARE_GOLD = 100


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete, non-empty `\boxed{...}`, or None.

    One pass, linear in the text: a model that repeats an open `\boxed{` for ever costs no more than others.
    """
    found: tuple[int, str] | None = None
    opened: list[tuple[int, bool]] = []
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace["open"]:
            opened.append((brace.end(), brace["box"] is not None))
        elif brace["close"] and opened:
            start, is_box = opened.pop()
            content = text[start : brace.start()].strip()
            if is_box and content and (found is None or start > found[0]):
                found = (start, content)
    return found[1] if found else None


def gold_of(reference: str) -> str:
    r"""The gold answer in a reference: after the last `####`, in the last `\boxed{}`, or as stated.

    A short one-line reference is its own answer. Empty where a long text states none: nothing can be graded
    against it.
    """
    marked = _MARKED.findall(reference)
    if marked:
        return str(marked[-1])
    boxed = last_boxed(reference)
    if boxed is not None:
        return boxed
    bare = reference.strip()
    if len(bare) <= _LONGEST_BARE_GOLD and "\n" not in bare and _STATED.search(bare) is None:
        return bare
    return stated_answer(reference) or ""


def stated_answer(text: str) -> str | None:
    """The answer of a text without a box, or None where it commits to none.

    That is a line `#### ...`, else what follows the last "answer is" or "answer:", else the only number of
    the last sentence, or of what follows its last equals sign. A last sentence with several numbers states no
    answer: taking the last number of any text would reward rambling.
    """
    marked = _MARKED.findall(text)
    if marked:
        return str(marked[-1])
    stated = list(_STATED.finditer(text))
    if stated:
        return _core(_first_sentence(text[stated[-1].end() :].splitlines()[0]))
    lines = text.strip().splitlines()
    last = _last_sentence(lines[-1]) if lines else ""
    return None if _DENIED.search(last) else _only_number(last)


def _core(phrase: str) -> str:
    """A phrase without the words around its formula or its only number."""
    formulas = [next(filter(None, groups)) for groups in _MATH.findall(phrase)]
    if len(formulas) == 1:
        return str(formulas[0])
    return _only_number(phrase) or unwrap(phrase)


def _only_number(sentence: str) -> str | None:
    after_equals = sentence.rsplit("=", 1)[-1]
    numbers = [match.group() for match in _ONE_NUMBER.finditer(after_equals)]
    # Operators beside the number make it a part of a formula, which is not the number.
    beside = _ONE_NUMBER.sub(" ", _undelimited(after_equals))
    if len(numbers) != 1 or re.search(r"[\^_+*/()\d]|\\[a-z]", beside):
        return None
    return numbers[0].strip()


def _undelimited(text: str) -> str:
    return re.sub(r"\\[()\[\]]|\\text\s*\{|\*\*", " ", text)


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def _last_sentence(line: str) -> str:
    sentences = [part for part in _SENTENCE_END.split(line) if part.strip()]
    return sentences[-1] if sentences else ""
