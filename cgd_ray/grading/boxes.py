r"""Find the boxes of a text, the content of `\boxed{}`, `\fbox{}` and `\boxed5`."""

import re

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox|framebox)\s{0,9}\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_UNBRACED = re.compile(r"\\(?:boxed|fbox|framebox)[^\S\n]{0,9}(?P<content>[^\s\\{$.,;]{1,40})")
_MOST = 10  # boxes of one sentence that are compared
_BREAK = re.compile(r"[.!?]\s|\n\s*\n")


def boxes_of(text: str) -> list[tuple[int, str]]:
    r"""Return the place and content of each complete, non-empty box, in order.

    Takes one pass, linear in the text, even if a model repeats an open `\boxed{` endlessly.
    """
    found: list[tuple[int, str]] = []
    opened: list[tuple[int, bool]] = []
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace["open"]:
            opened.append((brace.end(), brace["box"] is not None))
        elif brace["close"] and opened:
            start, is_box = opened.pop()
            content = text[start : brace.start()].strip()
            if is_box and content:
                found.append((start, content))
    found.extend((bare.start(), bare["content"]) for bare in _UNBRACED.finditer(text))
    return sorted(found)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete, non-empty `\boxed{...}` (or `\boxed5`), or None."""
    found = boxes_of(text)
    return found[-1][1] if found else None


def last_boxes(text: str) -> list[str]:
    """Return the contents of the boxes in the last sentence that has one."""
    found = boxes_of(text)
    contents: list[str] = []
    end = 0
    for start, content in found[: -_MOST - 1 : -1]:
        after = start + len(content)
        if contents and (after > end or _BREAK.search(text, after, end)):
            break
        contents.append(content)
        end = start
    return contents[::-1]
