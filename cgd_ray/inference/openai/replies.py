"""Parse an endpoint's answer: the completion, or the error in its place."""

from collections.abc import Callable
from typing import TypeGuard

from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from cgd_ray.inference.base import Completion, CompletionError, is_cut_off
from cgd_ray.inference.openai.reply_errors import ReplyError, error_among, reply_error
from cgd_ray.prompts.thinking import without_thinking
from cgd_ray.redaction import one_line

_TEXT_PARTS = {"text", "output_text", None}
_THOUGHT_PARTS = {"thinking", "reasoning", "redacted_thinking", "reasoning_content"}


_COUNTS = ("prompt_tokens", "completion_tokens")
_TOO_MANY_TOKENS, _LONGEST_COUNT = 2**31, 10  # what the tables hold, and its digits
_LONGEST_QUOTE = 200  # characters shown of an endpoint's words


def is_completion(answer: object) -> TypeGuard[ChatCompletion]:
    """Whether the client's answer has the shape of its type: the client accepts anything, even text other than JSON."""
    if not isinstance(answer, ChatCompletion):
        return False
    choices: object = answer.choices
    return choices is None or (
        isinstance(choices, list)
        and all(
            isinstance(choice, Choice) and isinstance(choice.message, ChatCompletionMessage | None)
            for choice in choices
        )
    )


def without_odd_usage(answer: ChatCompletion, body: Callable[[], object]) -> ChatCompletion:
    """Return the answer without a usage whose counts are booleans, which the client takes for 0 and 1.

    Args:
        answer: the client's answer, of any type.
        body: reads the answer's JSON once more.
    """
    if isinstance(answer, ChatCompletion) and {0, 1} & set(_counts(answer.usage)):
        told = body()
        usage = told.get("usage") if isinstance(told, dict) else None
        if isinstance(usage, dict) and any(isinstance(usage.get(name), bool) for name in _COUNTS):
            answer.usage = None
    return answer


def error_in(answer: ChatCompletion) -> ReplyError | None:
    """Return the error in place of a completion, if any: the body's own, or that of its choice."""
    choice = _choice(answer)
    if choice is not None and choice.message and choice.message.content:
        return None
    fields = answer.model_extra or {}
    told = fields if fields.get("error") else ((choice.model_extra or {}).get("error") if choice else None)
    if not told and (choice is None or not choice.message):
        told = error_among(fields)
    return reply_error(told) if told else None


def token_counts(answer: ChatCompletion) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion; None if the endpoint does not report them, or they cannot be true.

    A text of 0 tokens, counts below 0 and counts that a table cannot hold would cost nothing, or anything.
    """
    prompt, completion = _counts(answer.usage)
    if prompt is None or completion is None or (completion == 0 and _says_something(_choice(answer))):
        return None
    return prompt, completion


def completion_of(answer: ChatCompletion, most_tokens: int, tags: tuple[str, str] | None) -> Completion:
    """Return the completion in an answer; endpoints leave out fields that the client does not check.

    Args:
        answer: the client's answer, without an error in its place.
        most_tokens: requested maximum; an answer of this length without a finish reason counts as cut off.
        tags: tags around thinking in the text; the thinking is removed.

    Raises:
        CompletionError: there is no text, or no usage.
    """
    choice, counts = _choice(answer), token_counts(answer)
    if counts is None or choice is None or not choice.message:
        raise CompletionError(f"the endpoint's answer has no message or no usage{_odd_counts(answer)}", *counts or ())
    try:
        reason = _reason(choice.finish_reason) or ("length" if counts[1] >= most_tokens else "stop")
        truncated, text = is_cut_off(reason), _text(choice)
    except CompletionError as error:
        raise CompletionError(str(error), *counts) from error
    if tags is not None:
        text, has_ended = without_thinking(text, tags)
        truncated = truncated or not has_ended
    details: object = answer.usage.prompt_tokens_details if answer.usage else None
    return Completion(
        text=text,
        truncated=truncated,
        finish_reason=reason,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        cached_tokens=_count(getattr(details, "cached_tokens", None)),
    )


def _choice(answer: ChatCompletion) -> Choice | None:
    """Return the choice with index 0, or the first one."""
    choices = answer.choices or []
    return next((choice for choice in choices if choice.index == 0), next(iter(choices), None))


def _counts(usage: object) -> tuple[int | None, int | None]:
    prompt, completion = (_count(getattr(usage, name, None)) for name in _COUNTS)
    return prompt, completion


def _count(value: object) -> int | None:
    """Return a number of tokens, also one written as 10.0 or "10"; None if the value is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _LONGEST_COUNT:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOO_MANY_TOKENS
    return value if isinstance(value, int) and is_count else None


def _odd_counts(answer: ChatCompletion) -> str:
    """Return the counts that cannot be true, for the error."""
    usage: object = answer.usage
    if usage is None or token_counts(answer) is not None:
        return ""
    told = [f"{name} {getattr(usage, name)!r}" for name in _COUNTS if hasattr(usage, name)]
    return f" that can be true ({one_line(', '.join(told) or repr(usage), _LONGEST_QUOTE)})"


def _says_something(choice: Choice | None) -> bool:
    message = choice.message if choice else None
    return message is not None and bool(message.content or message.refusal)


def _reason(told: object) -> str:
    """Return the finish reason, also one in a list or an object; empty if there is none.

    Raises:
        CompletionError: it is of another type.
    """
    reason = told
    if isinstance(reason, list) and len(reason) == 1:
        reason = reason[0]
    if isinstance(reason, dict):
        reason = reason.get("type") or reason.get("reason")
    if reason is None and told is None:
        return ""
    if not isinstance(reason, str):
        raise CompletionError(f"the completion ended with {one_line(repr(told), _LONGEST_QUOTE)}")
    return "" if reason.lower() in ("null", "none") else reason


def _text(choice: Choice) -> str:
    """Return the message's text: a string, or a list of parts. Thinking in a separate field or part is left out."""
    message = choice.message
    content: object = message.content
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise CompletionError(f"the endpoint's text is {type(content).__name__}, neither a text nor a list of parts")
    if not content and message.refusal:
        raise CompletionError(f"the model refuses: {one_line(message.refusal, _LONGEST_QUOTE)}")
    return content or ""


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        if kind in _THOUGHT_PARTS:
            return ""
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise CompletionError(f"the endpoint's text has a part of type {kind!r}, which is no text")
