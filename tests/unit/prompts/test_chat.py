"""Chat templates that carry the recipe's arguments."""

from typing import Any

import pytest

from cgd_ray.prompts.chat import encode_chat, with_defaults
from tests.unit.training.tiny import CHATML, tiny_tokenizer

TEMPLATE = "{% if thinking %}think {{ style }}{% else %}no thought{% endif %}" + CHATML
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        ({}, "no thought"),
        ({"thinking": True, "style": "it's so"}, "think it's so"),
        ({"thinking": True}, "think it's so"),
        ({"style": "other", "thinking": True}, "think other"),
    ],
)
def test_defaults_stand_where_a_request_gives_nothing(given: dict[str, Any], rendered: str) -> None:
    tokenizer = tiny_tokenizer(with_defaults(TEMPLATE, {"thinking": False, "style": "it's so"}))
    ids = encode_chat(tokenizer, MESSAGES, add_generation_prompt=True, **given)
    plain = encode_chat(tiny_tokenizer(), MESSAGES, add_generation_prompt=True)
    assert tokenizer.decode(ids) == f"{rendered}{tokenizer.decode(plain)}"


def test_without_arguments_the_template_is_as_it_was() -> None:
    assert with_defaults(CHATML, {}) == CHATML
