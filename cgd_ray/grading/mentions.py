"""Texts that speak of what their reader has not seen."""

import re

# A refinement stands on its own (METHOD: "never mentions critique or draft"); these are the ways in which teachers
# nevertheless speak of what the reader has not seen.
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
    """Whether a text speaks of a critique, a draft or a student that its own prompt does not speak of."""
    return any(found.group(0).lower() not in prompt.lower() for found in _MENTIONS.finditer(text))
