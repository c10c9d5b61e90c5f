"""Other servers' words for a prompt that is too long, and what only looks like them."""

import pytest

from cgd_ray.inference.openai.overlong import says_too_long

TOO_LONG = """\
This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please reduce the
Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens. Please reduce the
context_length_exceeded: too long
Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 41000. The input
'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 2048 tokens and
The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that `max_model_len` is
The input (5000 tokens) is longer than the model's context length (4096 tokens).
Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000.
Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 4000 `inputs` tokens and 512
Input validation error: `inputs` must have less than 1024 tokens. Given: 1500
Prompt length (5000) exceeds maximum input length (4096). Set log level to info and check
the request exceeds the available context size, try increasing it
exceed_context_size_error: request (5000 tokens) exceeds the available context size (4096 tokens)
input is too large to process. increase the physical batch size
the input length exceeds the context length
Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of
prompt is too long: 208310 tokens > 200000 maximum
input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000, decrease input length
Input is too long for requested model.
Too many input tokens. Max input tokens: 8192, request input token count: 9000
Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length
The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).
too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.
The prompt is too long: 140000, model maximum context length: 131071
Please reduce the length of the messages or completion.
This model's maximum prompt length is 131072 but the request contains 537812 tokens.
litellm.ContextWindowExceededError: context_window_exceeded
This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 tokens
""".splitlines()

OTHER = """\
max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided 100000.
`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the
max_completion_tokens: Input should be less than or equal to 8192
Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.
Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested 2000. Try again in 2 s.
You exceeded your current quota, please check your plan and billing details.
Too many requests. Please wait.
Extra inputs are not permitted
Your input was flagged by our content filter as violating our usage policies
The model `x` does not exist
Invalid 'messages[0].content': string expected
temperature must be at most 2, which is the maximum
Request timed out: the upstream took longer than 60 s
""".splitlines()


@pytest.mark.parametrize("words", TOO_LONG, ids=lambda words: words[:40])
def test_a_prompt_that_is_too_long_is_known(words: str) -> None:
    assert says_too_long(words)


@pytest.mark.parametrize("words", OTHER, ids=lambda words: words[:40])
def test_other_refusals_are_not_taken_for_it(words: str) -> None:
    assert not says_too_long(words)
