"""Recognize endpoints' messages that a prompt is too long."""

import re

_OF_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|context_window_exceeded|string_above_max_length|request_too_large"
    r"|(maximum|max|model'?s?|available|supported|loaded with|the) (context|prompt|input|model|sequence)"
    r" ?(length|size|window|limit)\b.{0,120}\d"
    r"|(exceed|longer|greater|larger|overflow)\w*.{0,60}\bcontext[ _-]?(length|size|window|limit)"
    r"|context[ _-]?(length|size|window|limit)( is| was)? exceed",
    re.IGNORECASE | re.DOTALL,
)
_OF_PROMPT = re.compile(
    r"\b(prompts?|inputs?|messages?|conversation|sequence)\b[^.]{0,60}\b(too (long|large)|longer than|exceeds?)\b"
    r"|\brequest (is )?too (long|large)\b"
    r"|too many (input |prompt )?tokens\b"
    r"|exceeds? the (maximum|max)\w* (number of )?(input |prompt )?tokens"
    r"|inputs?` (tokens )?\+ `max_new_tokens` must be|must have less than \d+ tokens"
    r"|reduce (the|your) (length|size) of (the|your) (messages?|prompts?|input)"
    r"|reduce your (prompt|message|input)",
    re.IGNORECASE,
)
_OF_COMPLETION = re.compile(r"max_(completion_|output_)?tokens\W+(is|must|cannot|value|exceeds?)", re.IGNORECASE)


def says_too_long(words: str) -> bool:
    """Whether a message means that the prompt is too long, which the same model and prompt always repeat.

    Covers OpenAI, Azure, vLLM, SGLang, TGI, TensorRT-LLM, llama.cpp, Ollama, LM Studio, Anthropic, Mistral, Gemini,
    Bedrock, Cohere, Fireworks, Together, Groq, xAI and gateways in front of them. A `max_tokens` above a model's output
    limit does not concern the prompt.
    """
    if _OF_CONTEXT.search(words):
        return True
    return bool(_OF_PROMPT.search(words)) and not _OF_COMPLETION.search(words)
