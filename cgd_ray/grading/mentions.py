"""Detect texts that mention inputs which their reader does not have."""

import re

# A refinement must be self-contained (METHOD: "never mentions critique or draft"); these patterns match how teachers
# mention the inputs nevertheless.
_MENTIONS = re.compile(
    r"""\b(
        (the|this|your|my|a|an|first|initial|original|previous|earlier|student(['\u2019]s)?|provided|given)\s+
            ((draft|critique|critic|first\s+attempt|(initial|previous|earlier)\s+(answer|response|attempt))s?
            |student(['\u2019]s)?(\s+(answer|response|solution|reasoning))?)
      | as\s+(noted|mentioned|pointed\s+out|explained)\s+(above\s+)?in\s+the\s+(critique|feedback|review)
      | verdict\s*:\s*(right|wrong)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def mentions_inputs(text: str, prompt: str) -> bool:
    """Whether a text mentions a critique, a draft or a student that its own prompt does not mention."""
    return any(found.group(0).lower() not in prompt.lower() for found in _MENTIONS.finditer(text))
