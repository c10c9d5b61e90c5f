"""Parse an endpoint's answer: the completion, or the error in its place."""

from dataclasses import dataclass
from typing import TypeGuard

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from cgd_ray.inference.base import Completion, CompletionError, is_cut_off
from cgd_ray.prompts.thinking import without_thinking

_TEXT_PARTS = {"text", "output_text", None}
_THOUGHT_PARTS = {"thinking", "reasoning", "redacted_thinking", "reasoning_content"}


@dataclass(frozen=True)
class ReplyError:
    """An error in a body with status 200."""

    status: int | None
    """Status in the body, if it is a number."""
    code: str
    words: str


def is_completion(answer: object) -> TypeGuard[ChatCompletion]:
    """Whether the client's answer has the shape of its type: the client accepts anything, even text other than JSON."""
    if not isinstance(answer, ChatCompletion) or not isinstance(answer.usage, CompletionUsage | None):
        return False
    choices: object = answer.choices
    return choices is None or (
        isinstance(choices, list)
        and all(
            isinstance(choice, Choice) and isinstance(choice.message, ChatCompletionMessage | None)
            for choice in choices
        )
    )


def error_in(answer: ChatCompletion) -> ReplyError | None:
    """Return the error in place of a completion, if any: the body's own, or that of its only choice."""
    choice = next(iter(answer.choices or []), None)
    if choice is not None and choice.message and choice.message.content:
        return None
    told = (answer.model_extra or {}).get("error") or ((choice.model_extra or {}).get("error") if choice else None)
    if not told:
        return None
    fields = told if isinstance(told, dict) else {"message": told}
    codes = [str(fields[name]) for name in ("code", "status", "status_code", "type") if fields.get(name) is not None]
    number = next((int(code) for code in codes if code.isdigit()), None)
    return ReplyError(number, " ".join(codes), " ".join(str(fields.get("message") or told).split()))


def token_counts(answer: ChatCompletion) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion; None if the endpoint does not report them."""
    counts = [getattr(answer.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    return None if prompt is None or completion is None else (prompt, completion)


def completion_of(answer: ChatCompletion, most_tokens: int, tags: tuple[str, str] | None) -> Completion:
    """Return the completion in an answer; endpoints leave out fields that the client does not check.

    Args:
        answer: the client's answer, without an error in its place.
        most_tokens: requested maximum; an answer of this length without a finish reason counts as cut off.
        tags: tags around thinking in the text; the thinking is removed.

    Raises:
        CompletionError: there is no text, or no usage.
    """
    choice, counts = next(iter(answer.choices or []), None), token_counts(answer)
    if choice is None or not choice.message or counts is None:
        raise CompletionError("the endpoint's answer has no message or no usage")
    try:
        reason = choice.finish_reason or ("length" if counts[1] >= most_tokens else "stop")
        truncated, text = is_cut_off(reason), _text(choice)
    except CompletionError as error:
        raise CompletionError(str(error), *counts) from error
    if tags is not None:
        text, has_ended = without_thinking(text, tags)
        truncated = truncated or not has_ended
    details = answer.usage.prompt_tokens_details if answer.usage else None
    return Completion(
        text=text,
        truncated=truncated,
        finish_reason=reason,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        cached_tokens=details.cached_tokens if details else None,
    )


def _text(choice: Choice) -> str:
    """Return the message's text: a string, or a list of parts. Thinking in a separate field or part is left out."""
    message = choice.message
    content: object = message.content
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise CompletionError(f"the endpoint's text is {type(content).__name__}, neither a text nor a list of parts")
    if not content and message.refusal:
        raise CompletionError(f"the model refuses: {message.refusal[:200]}")
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
