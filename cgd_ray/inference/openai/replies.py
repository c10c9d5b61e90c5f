"""What an endpoint's answer says: the completion, or the error that stands in its place."""

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
    """An error in a body that came with status 200."""

    status: int | None
    """As the body says, where it is a number."""
    code: str
    words: str


def is_completion(answer: object) -> TypeGuard[ChatCompletion]:
    """Whether the client's answer has the shape of its type: it takes what it is given, also text that is no JSON."""
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
    """The error that the body tells in place of a completion, its own or that of its only choice."""
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
    """Tokens of prompt and completion; None where the endpoint does not say them."""
    counts = [getattr(answer.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    return None if prompt is None or completion is None else (prompt, completion)


def completion_of(answer: ChatCompletion, most_tokens: int, tags: tuple[str, str] | None) -> Completion:
    """The completion in an answer; endpoints leave out what the client does not check.

    Args:
        answer: of the client, without an error in its place.
        most_tokens: that were asked for: an answer of so many, whose end has no reason, was cut off.
        tags: around thinking in the text, which is left out.

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
    """The message's text: a string, or a list of parts. Thinking in a field or part of its own is left out."""
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
