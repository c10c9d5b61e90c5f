"""Chat templates of other people's models, looked at before anything is paid for: on the very tokenizer."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.recipe import Recipe, parse_recipe
from cgd_ray.errors import ConfigError
from cgd_ray.pipeline.preflight import preflight, require_histories
from cgd_ray.prompts.chat import load_tokenizer, pin_date
from cgd_ray.prompts.chat_encoder import Encoded
from cgd_ray.prompts.conversation import Conversation, sample_history, with_history
from cgd_ray.stages.resolved import open_run
from cgd_ray.stages.student_encoder import student_encoder
from tests.unit.training.tiny import CHATML, tiny_tokenizer

START = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"


def recipe(folder: Path, template: str, *, data: dict[str, Any] | None = None, **training: Any) -> Recipe:
    model = folder / "model"
    tiny_tokenizer(template).save_pretrained(model)
    (model / "config.json").write_text("{}")
    (folder / "data.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    tree: dict[str, Any] = {
        "run": {"name": "r", "root": str(folder / "root")},
        "data": {"type": "jsonl", "path": str(folder / "data.jsonl"), "holdout": {"count": 1}} | (data or {}),
        "student": {"model": str(model)},
        "teacher": {"engine": {"type": "scripted"}},
        "evaluation": {"enabled": False},
        "training": training,
    }
    return parse_recipe(tree, "r.yaml")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (START + PARTS + END, "writes the user's text 0 times into a conversation of 1 turns"),
        (START + "{{ m.content[0].text }}" + END, "writes the user's text 0 times"),
        (START + "{{ m.content }}{{ m.content }}" + END, "writes the user's text 2 times"),
        (START + "{{ m.content | upper }}" + END, "writes the user's text 0 times"),
        (
            START + "{% if m.role == 'user' %}{{ m.content }}{% endif %}" + END,
            "writes the assistant's text 0 times into a conversation of 2 turns",
        ),
        ("{{ raise_exception('No\nuser!') }}", "fails on 1 turns: TemplateError: No user!."),
        ("{{ messages[0].content + 1 }}", "fails on 1 turns: TypeError"),
        ("{% if %}", "fails on 1 turns: TemplateSyntaxError"),
        (START + "{{ tools.name.x }}" + END, "fails on 1 turns: UndefinedError"),
        (CHATML.replace("<|im_end|>", "</s>"), "without a special token"),
    ],
)
def test_a_template_that_loses_a_text_is_refused_before_anything_is_made(
    tmp_path: Path, template: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(recipe(tmp_path, template))
    text = str(caught.value)
    assert text.startswith("student: ")
    assert said in text
    assert "student.engine.chat_template" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "change",
    [
        "m.content | lower",
        "m.content | capitalize",
        "m.content.replace('\n', ' ')",
        "m.content.replace('\n\n', '\n')",
        "m.content.split() | join(' ')",
        "m.content.expandtabs()",
        "m.content[:100]",
        "m.content[:1000]",
        "m.content[-100:]",
        "m.content | truncate(200)",
        "m.content | escape",
        "m.content | striptags",
        "m.content | tojson",
        "m.content | urlencode",
        "m.content | wordwrap(80)",
        "m.content.replace('\\\\', '')",
    ],
)
@pytest.mark.parametrize("role", ["", "user", "assistant", "system"])
def test_a_template_that_changes_a_text_is_refused(tmp_path: Path, change: str, role: str) -> None:
    inner = "{{ " + change + " }}"
    if role:
        inner = "{% if m.role == '" + role + "' %}" + inner + "{% else %}{{ m.content }}{% endif %}"
    made = recipe(tmp_path, START + inner + END)
    histories = [sample_history(1, system=True)]
    with pytest.raises(ConfigError, match=r"^student: .* Fix: name another template in student\.engine\.chat_template"):
        student_encoder(made, histories)


@pytest.mark.parametrize("inner", ["m.content | trim", "m.content.strip()", "'\n' + m.content | trim"])
def test_a_template_may_trim_texts(tmp_path: Path, inner: str) -> None:
    student_encoder(recipe(tmp_path, START + "{{ " + inner + " }}" + END), [sample_history(2, system=True)])


REPEATS = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"


def test_a_system_prompt_may_be_short_and_have_blanks_around_it(tmp_path: Path) -> None:
    template = START + "{{ m.content | trim }}" + END
    student_encoder(recipe(tmp_path, template, data={"system_prompt": " it \n"}))
    with pytest.raises(ConfigError, match="writes the system's text 2 times"):
        student_encoder(recipe(tmp_path, template + REPEATS, data={"system_prompt": " it \n"}))


@pytest.mark.parametrize("what", ["range(100) | random", "['a', 'b'] | random"])
def test_a_template_that_says_something_else_each_time_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(ConfigError, match=r"^student: .*writes another text each time.* Fix: "):
        student_encoder(recipe(tmp_path, "{{ " + what + " }}" + CHATML))


def test_several_turns_are_looked_at_where_they_are_used(tmp_path: Path) -> None:
    once = "{% if messages|length > 2 %}{{ raise_exception('one question, please') }}{% endif %}" + CHATML
    student_encoder(recipe(tmp_path, once))
    with pytest.raises(ConfigError, match="fails on 3 turns: TemplateError: one question, please"):
        student_encoder(recipe(tmp_path, once, context="multi-turn"))


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
DROPS_SYSTEM = START + "{% if m.role != 'system' %}{{ m.content }}{% endif %}" + END


@pytest.mark.parametrize(
    ("template", "said"),
    [(NO_SYSTEM, "fails on 2 turns: .*no system turns"), (DROPS_SYSTEM, "writes the system's text 0 times")],
)
def test_system_turns_are_looked_at_where_there_are_any(tmp_path: Path, template: str, said: str) -> None:
    preflight(recipe(tmp_path, template))
    with pytest.raises(ConfigError, match=f"^student: .*{said}"):
        preflight(recipe(tmp_path, template, data={"system_prompt": "Be short."}))
    spoken = [
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "a"}],
    ]
    for count, is_refused in ((1, False), (2, True)):
        made = recipe(tmp_path, template, data={"messages_column": "messages", "holdout": {"fraction": 0.01}})
        (tmp_path / "data.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in spoken[:count]))
        run = open_run(made, preflight(made))
        with pytest.raises(ConfigError, match=said) if is_refused else contextlib.nullcontext():
            require_histories(run)


def test_earlier_turns_are_looked_at_as_far_as_they_go(tmp_path: Path) -> None:
    last = "{% if messages|length > 5 %}{% set messages = messages[-5:] %}{% endif %}" + CHATML
    turns = [{"role": role, "content": f"{number}"} for number in range(3) for role in ("user", "assistant")]
    for earlier, is_refused in ((2, False), (6, True)):
        made = recipe(tmp_path, last, data={"messages_column": "messages", "holdout": {"fraction": 0.01}})
        row = {"messages": [*turns[:earlier], {"role": "user", "content": "x"}]}
        (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
        run = open_run(made, preflight(made))
        with pytest.raises(ConfigError, match="0 times") if is_refused else contextlib.nullcontext():
            require_histories(run)


def test_what_the_arguments_change_is_looked_at_with_them(tmp_path: Path) -> None:
    made = recipe(tmp_path, "{% if not bare %}" + CHATML + "{% endif %}")
    student_encoder(made)
    draft = made.generation.draft.model_copy(update={"chat_template_kwargs": {"bare": True}})
    changed = made.model_copy(update={"generation": made.generation.model_copy(update={"draft": draft})})
    with pytest.raises(ConfigError, match="writes the user's text 0 times"):
        student_encoder(changed)


@pytest.mark.parametrize(
    "call",
    [
        "strftime_now('%d %b %Y')",
        'strftime_now( "%d %b %Y" )',
        "(strftime_now('%d %b %Y') if strftime_now is defined else '')",
    ],
)
def test_a_template_says_the_same_date_on_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    template = "{{ 'Today: ' + " + call + " }}\n" + CHATML
    made = recipe(tmp_path, template)
    encoder = student_encoder(made)
    row = encoder.encode(Conversation(with_history("a"), "b"))
    assert isinstance(row, Encoded)
    assert "Today: 26 Jul 2024\n" in encoder.tokenizer.decode(row.input_ids)
    encoder.tokenizer.save_pretrained(tmp_path / "exported")
    later = time.time() + 400 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert load_tokenizer(tmp_path / "exported", None, "student").chat_template == encoder.tokenizer.chat_template


@pytest.mark.parametrize(
    "call",
    [
        "strftime_now(form)",
        "strftime_now('%Y' ~ '%m')",
        "strftime_now(format='%d')",
        "strftime_now if strftime_now is defined",
        "['%d'] | map(strftime_now) | first",
    ],
)
def test_a_date_that_cannot_be_fixed_is_refused(call: str) -> None:
    with pytest.raises(ConfigError, match=r"^student: .*writes today's date.*Fix: .*student\.engine\.chat_template"):
        pin_date("{{ " + call + " }}", "student")


def test_a_date_under_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="writes today's date"):
        pin_date("{% set s = strftime_now %}{{ s('%S') }}", "student")
    asks = "{# strftime_now #}{% if strftime_now is not defined or not strftime_now is defined %}x{% endif %}"
    assert pin_date(asks, "student") == asks


def test_a_teacher_that_does_not_see_its_prompt_is_refused(tmp_path: Path) -> None:
    made = recipe(tmp_path, START + PARTS + END)
    teacher = {"type": "vllm", "model": str(tmp_path / "model")}
    tree = made.model_dump() | {
        "teacher": {"engine": teacher},
        "student": {"model": "s", "engine": {"type": "scripted"}},
    }
    with pytest.raises(ConfigError, match=r"^teacher: .* writes the user's text 0 times"):
        preflight(parse_recipe(tree, "r.yaml"))
