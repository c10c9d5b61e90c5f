"""Find the answer in a text: in a box, on a marked line, or in a sentence."""

import re

from cgd_ray.grading.boxes import last_boxed
from cgd_ray.grading.codes import date_of
from cgd_ray.grading.expressions import is_mathematical
from cgd_ray.grading.normal import normalise, plain, unwrap
from cgd_ray.grading.numbers import NUMBER, WORDS, value_of_words
from cgd_ray.grading.quantities import choice_of, quantity, without_remark
from cgd_ray.grading.sentences import COMPARED, MATH, equations_of, formulas_of, list_of, only_number, sole_formula

_MARKED = re.compile(r"#{4}(?!#)[^\S\n]*+(?:\n[^\S\n]*+)?+([^\n]*)")
_OPEN_TAG, _CLOSE_TAG = "<answer>", "</answer>"
# "The answer is 5", "Answer: 5", "final answer for part b is: 5"; few characters may stand between, so that
# "the answer depends on ... and x is" does not match.
_STATED = re.compile(
    r"(?P<seek>\b(?:find|get|obtain|check|verify|calculate|compute|determine|give|submit|write|express)\s+"
    r"(?:the|an|our|your|this|my)\s+(?:final\s+|correct\s+)?)?"
    r"\b(?:answers?|(?:correct|right|best)\s+(?:option|choice)|(?<![^\n*])(?:option|choice)(?=\s*:))\b"
    r"[^.\n:=]{0,40}?(?:\bis\b|(?<=answers )are\b|->|[:=→])[\s:*_]*+(?=\S)",
    re.IGNORECASE,
)
# Option (B) is correct.
_CHOSEN = re.compile(
    r"\b(?i:option|choice|answer)\s*:?\s*\(?(?P<letter>[A-J])\)?\s+(?i:is|must\s+be)\s+(?i:the\s+)?(?i:correct|right|best)\b"
)
_NAMED_CHOICE = re.compile(
    r"(?:option|choice)\s*:?\s*(?P<choice>\([A-J]\)(?:\s(?!is\b|was\b).*)?|[A-J](?:[.:)].*)?)", re.IGNORECASE
)
_YES_NO = re.compile(r"(?P<word>yes|no)\s*[,.!:;-](?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_JUDGEMENT = re.compile(
    r"(?:indeed\s+|also\s+|clearly\s+)?(?:correct|right|reasonable|plausible|valid|verified|confirmed|consistent|sensible"
    r"|incorrect|clear|obvious|simple|complete|found|given|shown|unique|checked)\b(?!\s*:)",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\bnot\b|n't\b|n\N{RIGHT SINGLE QUOTATION MARK}t\b", re.IGNORECASE)
_INSTEAD = re.compile(
    r"(?:\bnot|n['\u2019]t)\b[^.;]{1,60}?(?:,?\s+but(?:\s+rather)?|[,;]\s*(?:it(?:'s|\s+is)|rather))\s+(?=\S)",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r",?\s+(?:because|since|after|as\s+(?:required|expected|we)|instead\s+of|rather\s+than|and\s+not|not|given\s+that|which)\b"
    r"|,\s+(?:not|so|as)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=\s|$)")
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|be|becomes?|gives?|get|gets|therefore|thus)\b\s*:?|(?<![<>!:=])=(?!=)|:\s", re.I
)
_WRITTEN_TWICE = re.compile(rf"(?:{WORDS.pattern})\s*\((?P<number>{NUMBER})\)", re.IGNORECASE)
# "five (5)" and "5 (five)" are one number
_TWICE = re.compile(
    rf"(?:{WORDS.pattern})\s?\((?P<number>{NUMBER})\)|(?P<first>{NUMBER})\s?\((?:{WORDS.pattern})\)", re.IGNORECASE
)
_RATIO_OR_POINT = re.compile(r"\d{1,9}\s?:\s?\d{1,9}|[(\[]-?[\d./]{1,20}(?:\s?,\s?-?[\d./]{1,20}){1,9}[)\]]")
_TIMES_PI = re.compile(r"(?P<value>-?[\d./]{0,20}\s?(?:π|\\pi(?![A-Za-z]))(?:/\d{1,9})?)(?:\s+[a-z]{2,12}){0,2}")
_CLOSING = re.compile(
    r"\b(?:hope|let me know|feel free|if you have any|happy to help|good luck|thank(?:s| you)|any questions"
    r"|need (?:any|more|further))\b"
    r"|^\W*(?:\(?\s*note\b|```|---+\s*$|check\b|verification\b|\*\*note)",
    re.IGNORECASE,
)
_BRACED_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?$")
_LIST_MARK = re.compile(r"^\s*(?:[-*+>•]\s+|\d{1,2}[.)]\s+(?=\S))+")

_LONGEST = 2000
"""Maximum characters of a phrase or reference: longer text is no answer."""
_LONGEST_BARE = 200
_MOST_STATEMENTS = 20  # number of last statements that are checked
_LAST_LINES = 40
_FEW_WORDS = 8  # a longer phrase without a number is a sentence, not an answer


def gold_of(reference: str) -> str:
    r"""Return the gold answer of a reference: after the last `####`, in the last `\boxed{}`, or as stated.

    A reference without any of these is its own answer, unless it is prose. Empty if the reference states no answer:
    nothing can be graded against it.
    """
    text = normalise(reference)
    if marked := _last_mark(text):
        return marked
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    bare = text.strip()
    if named := _NAMED_CHOICE.fullmatch(bare):
        return str(named["choice"])
    if not _STATED.search(bare):
        return "" if _is_prose(bare) else bare
    return _stated(bare) or ""


def stated_answer(text: str) -> str | None:
    """Return the answer that a text without a box states, or None.

    The first match counts: a line `#### ...`; the text after the last "answer is" or "answer:" that gives an answer; a
    text that is only an answer; the conclusion of the last sentence. The conclusion is the sentence's only number or
    formula, or the one after its last verb or equals sign. Any other last sentence with several numbers states no
    answer: taking the last number of any text would reward rambling.
    """
    text = normalise(text)
    return _tagged(text) or _last_mark(text) or _stated(text) or _bare(text) or _concluded(text) or _yes_or_no(text)


def _tagged(text: str) -> str | None:
    """Return the answer between the last `<answer>` and `</answer>`."""
    end = text.rfind(_CLOSE_TAG)
    start = text.rfind(_OPEN_TAG, 0, end) if end > 0 else -1
    content = text[start + len(_OPEN_TAG) : end].strip() if start >= 0 else ""
    return (_stated(content) or _core(content)) if content else None


def _yes_or_no(text: str) -> str | None:
    """Return the first word of a text that begins with "Yes," or "No," and has no other answer."""
    found = _YES_NO.match(unwrap(text[:_LONGEST]))
    if found is None or re.search(r"\b(?:yes|no)\b", text[found.end("word") :], re.IGNORECASE):
        return None
    return found["word"] if len(text) <= _LONGEST else None


def _bare(text: str) -> str | None:
    """Return a text that is only an answer: one line with a formula, or of one or two words."""
    line = unwrap(text.strip())
    if "\n" in line or len(line) > _LONGEST_BARE:
        return None
    if named := _NAMED_CHOICE.fullmatch(line):
        return str(named["choice"])
    if date_of(plain(line)) or value_of_words(plain(line)) is not None:
        return line
    formula = plain(_BRACED_UNIT.sub("", line))
    is_formula = is_mathematical(formula, longest_name=1) and not re.search(r"[A-Za-z]\s*:|^=|\bor\b", formula)
    return line if line and (is_formula or re.fullmatch(r"[^\W\d_]+(?:[\s-][^\W\d_]+)?", plain(line))) else None


def _last_mark(text: str) -> str | None:
    """Return the answer after the last `####` that does not begin a heading."""
    for mark in reversed(_MARKED.findall(text)):
        content = mark.strip().strip("*").strip()[:_LONGEST]
        if stated := _stated(content):
            return stated
        if content and (quantity(plain(content)) or not _is_heading(content)):
            return str(content)
    return None


def _is_heading(content: str) -> bool:
    return bool(
        re.match(r"(?:step|part|solution|answer|final|conclusion|check|verification|explanation)\b", content, re.I)
    )


def _is_prose(text: str) -> bool:
    if len(text) > _LONGEST:
        return True
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return len(words) > 2 * _FEW_WORDS or (len(words) > _FEW_WORDS // 2 and len(text.strip().splitlines()) > 1)


def _stated(text: str) -> str | None:
    """Return the answer of the last statement with the word "answer" that gives one."""
    statements = [found for found in _STATED.finditer(text) if not found["seek"]]
    for found in reversed(statements[-_MOST_STATEMENTS:]):
        rest = text[found.end() : found.end() + _LONGEST]
        phrase = _phrase(rest, is_new_line="\n" in found.group())
        if _JUDGEMENT.match(phrase):
            continue
        if instead := _INSTEAD.match(phrase):
            phrase = phrase[instead.end() :]
        elif _DENIED.match(phrase):
            continue
        if (said := _core(phrase)) is None:
            continue
        # "Answer: She had 2 apples. So she has 5." begins a solution, whose conclusion counts.
        later = _concluded(text[found.end() :]) if _is_sentence(phrase) else None
        return later or said
    return None


def _phrase(rest: str, *, is_new_line: bool) -> str:
    """Return the statement: a display or code block, else the rest of its sentence without a list mark."""
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("```", "```")):
        if rest.startswith(left) and (end := rest.find(right, len(left))) > 0:
            return rest[len(left) : end].strip()
    line = rest.splitlines()[0] if rest else ""
    if is_new_line:
        line = _LIST_MARK.sub("", line)
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip().strip("*_ ")


def _is_sentence(phrase: str) -> bool:
    return (
        bool(re.match(r"(?:she|he|they|it|we|the|there|so|each|first|let)\b", phrase, re.I)) and len(phrase.split()) > 2
    )


def _core(phrase: str) -> str | None:
    """Return the answer in a phrase: its formula, its only number, or its few words; None if it gives none."""
    phrase = phrase[:_LONGEST]
    whole = unwrap(without_remark(phrase))
    if named := _NAMED_CHOICE.fullmatch(whole):
        return str(named["choice"])
    formulas = formulas_of(phrase)
    if len(formulas) == 1 and not COMPARED.search(phrase):
        return formulas[0]
    if typed := _typed(whole):
        return typed
    clause = _ASIDE.split(whole, maxsplit=1)[0].strip()
    if number := equations_of(clause) or only_number(clause):
        return number
    if _is_sentence(phrase):
        return _concluded(clause)
    has_number = any(character.isdigit() for character in clause)
    is_short = len(clause.split()) <= _FEW_WORDS
    return unwrap(clause) if clause and (has_number or is_short) and not _speaks(clause) else None


def _typed(whole: str) -> str | None:
    """Return the answer of a phrase that is a number, in digits or words, or a choice; else None."""
    if quantity(plain(whole)) is not None:
        return whole if value_of_words(plain(whole)) is not None else only_number(whole) or whole
    if (said := _YES_NO.fullmatch(whole)) and not re.search(r"\d", whole):
        return str(said["word"])
    twice = _WRITTEN_TWICE.fullmatch(whole)  # five (5)
    return str(twice["number"]) if twice else whole if choice_of(plain(whole)) else None


def _speaks(clause: str) -> bool:
    """Whether a clause begins like an announcement, not like an answer."""
    return bool(re.match(r"(?:let'?s|let us|we|to|first|as follows|below|above|in)\b", clause, re.IGNORECASE))


def _concluded(text: str) -> str | None:
    """Return the conclusion of the last sentence, ignoring courtesies and notes; None if there is none."""
    sentence = _last_sentence(text)
    if _DENIED.search(sentence):
        instead = list(_INSTEAD.finditer(sentence))
        return _core(sentence[instead[-1].end() :]) if instead else None
    if chosen := _CHOSEN.search(sentence):
        return str(chosen["letter"])
    clause = without_remark(_TWICE.sub(lambda found: found["number"] or found["first"], _main_clause(sentence)))
    return equations_of(clause) or _after_verb(clause) or sole_formula(clause) or only_number(clause)


def _main_clause(sentence: str) -> str:
    """Return a sentence without the aside at its end; of "x + 3 = 11, so x = 8", the part after "so"."""
    aside = _ASIDE.search(sentence)
    if aside is None:
        return sentence
    rest = sentence[aside.end() :]
    word = aside.group().strip(", ").casefold()
    is_result = (word == "so" and _VERB.search(rest)) or (word in {"which", "after"} and "=" in rest)
    return rest if is_result and re.search(r"\d", rest) else sentence[: aside.start()]


def _after_verb(clause: str) -> str | None:
    """Return the answer after the last verb or equals sign of a clause, if it gives one."""
    verbs = list(_VERB.finditer(clause))
    tail = clause[verbs[-1].end() :].strip() if verbs else ""
    if tail and choice_of(plain(tail)):
        return tail
    if not tail or COMPARED.search(tail):
        return None
    if _is_formula(tail):
        return formulas_of(tail)[0]
    if quantity(plain(tail)):
        return only_number(tail) or unwrap(tail)
    if times_pi := _TIMES_PI.fullmatch(tail):
        return str(times_pi["value"])
    return (
        tail
        if _RATIO_OR_POINT.fullmatch(tail)
        else list_of(tail)
        if verbs[-1].group().strip().casefold() == "are"
        else None
    )


def _is_formula(tail: str) -> bool:
    """Whether the text is a formula, followed by words at most."""
    found = MATH.match(tail)
    return found is not None and not re.search(r"\d|\$", MATH.sub(" ", tail))


def _last_sentence(text: str) -> str:
    """Return the last sentence that is not a courtesy or note; empty if there is none."""
    for line in reversed(text.strip().splitlines()[-_LAST_LINES:]):
        end = line[-_LONGEST:].strip()
        if end in {"", "$$", "\\]", "\\[", "```"}:
            continue
        for sentence in reversed([part for part in _SENTENCE_END.split(end) if part.strip(" *_`$")]):
            if not _CLOSING.search(sentence):
                return sentence.strip()
    return ""
