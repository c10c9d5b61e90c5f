"""Chat templates: the model's own, the recipe's, and the arguments that they carry."""

from pathlib import Path
from typing import Any

import pytest

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.chat import encode_chat, load_tokenizer, template_text, with_defaults
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


def test_a_template_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    assert template_text(None, "key") is None
    assert template_text(CHATML, "key") == CHATML
    assert template_text(str(file), "key") == CHATML
    with pytest.raises(ConfigError, match=r"key /nowhere\.jinja: neither a template .* nor a file"):
        template_text("/nowhere.jinja", "key")


def test_no_template_is_guessed(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"name one in student\.engine\.chat_template"):
        load_tokenizer(tmp_path, None, "student")
    assert load_tokenizer(tmp_path, TEMPLATE, "student").chat_template == TEMPLATE


def test_a_system_prompt_stands_where_a_request_has_none() -> None:
    text = 'Say "it\'s" {{ x }} %} #}\n\\n ä 🍎'
    tokenizer, plain = tiny_tokenizer(with_defaults(CHATML, {}, text)), tiny_tokenizer()
    asked, system = [{"role": "user", "content": "Hi"}], [{"role": "system", "content": text}]
    for opens in (False, True):
        given = {"tokenize": False, "add_generation_prompt": opens}
        assert tokenizer.apply_chat_template(asked, **given) == plain.apply_chat_template([*system, *asked], **given)
        other = [{"role": "system", "content": "Other."}, *asked]
        assert tokenizer.apply_chat_template(other, **given) == plain.apply_chat_template(other, **given)
