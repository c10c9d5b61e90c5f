import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation, SkippedRow, Turn, with_history
from tests.unit.training.tiny import CHATML, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ENCODER = ChatEncoder(TOKENIZER, {})
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
CONTROL = st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>"])
END = "<|im_end|>"


def encoded(user: str, target: str, encoder: ChatEncoder = ENCODER) -> Encoded:
    result = encoder.encode(Conversation(with_history(user), target))
    assert isinstance(result, Encoded)
    return result


@given(user=TEXT, target=TEXT)
def test_supervised_tokens_decode_to_the_target_and_its_end(user: str, target: str) -> None:
    row = encoded(user, target)
    assert TOKENIZER.decode(row.input_ids[row.target_start :]) == target + END


@given(user=TEXT, target=TEXT)
def test_the_rest_is_what_a_chat_endpoint_sends(user: str, target: str) -> None:
    row = encoded(user, target)
    sent = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, return_dict=False
    )
    assert row.input_ids[: row.target_start] == sent == ENCODER.prompt_ids(with_history(user))


@given(turns=st.tuples(TEXT, TEXT, TEXT), target=TEXT)
def test_of_several_turns_the_last_one_alone_is_supervised(turns: tuple[str, str, str], target: str) -> None:
    question, answer, next_question = turns
    shown = with_history(next_question, (*with_history(question), Turn("assistant", answer)))
    row = ENCODER.encode(Conversation(shown, target))
    assert isinstance(row, Encoded)
    messages = [turn.as_message() for turn in shown]
    sent = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert row.input_ids[: row.target_start] == sent
    assert TOKENIZER.decode(row.input_ids[row.target_start :]) == target + END


@given(parts=st.lists(TEXT | CONTROL, min_size=1, max_size=5), user=TEXT | CONTROL)
def test_control_tokens_in_texts_stay_text(parts: list[str], user: str) -> None:
    target = "x" + "".join(parts)
    row = encoded(user, target)
    prompt, learnt = row.input_ids[: row.target_start], row.input_ids[row.target_start :]
    special = {TOKENIZER.convert_tokens_to_ids(token) for token in ("<|im_start|>", END, "<|endoftext|>")}
    assert [index for index in learnt if index in special] == [ENCODER.end_of_turn]
    assert sum(index in special for index in prompt) == sum(
        index in special for index in ENCODER.prompt_ids(with_history("a"))
    )
    assert TOKENIZER.decode(learnt) == target + END


@pytest.mark.parametrize("target", ["<call>", "\n<call>"])
def test_tokens_that_a_template_names_stay_text_though_they_are_not_special(target: str) -> None:
    tokenizer = tiny_tokenizer(CHATML + "{% if tools %}<call>{% endif %}")
    tokenizer.add_tokens([AddedToken("<call>", special=False, normalized=False)])
    row = encoded("<call>", target, ChatEncoder(tokenizer, {}))
    assert tokenizer.convert_tokens_to_ids("<call>") not in row.input_ids
    assert tokenizer.decode(row.input_ids[row.target_start :]) == target + END


def test_end_of_turn_is_learnt_though_it_is_the_pad_token() -> None:
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id == ENCODER.end_of_turn
    assert encoded("a", "b").input_ids[-1] == ENCODER.end_of_turn


def test_line_break_behind_the_end_of_turn_is_cut_off() -> None:
    assert TOKENIZER.decode(encoded("a", "b").input_ids).endswith("b" + END)


@pytest.mark.parametrize("target", ["\nanswer", "\n\nanswer", " answer", "answer\n"])
def test_white_space_at_the_border_keeps_the_prompt_as_sent(target: str) -> None:
    row = encoded("a", target)
    assert row.input_ids[: row.target_start] == ENCODER.prompt_ids(with_history("a"))
    assert TOKENIZER.decode(row.input_ids[row.target_start :]) == target + END


@pytest.mark.parametrize("target", ["", " \n"])
def test_an_empty_target_is_left_out_with_a_reason(target: str) -> None:
    assert ENCODER.encode(Conversation(with_history("a"), target)) == SkippedRow("empty target")


def test_a_template_with_bos_gives_one_bos() -> None:
    tokenizer = tiny_tokenizer("{{ '<|endoftext|>' }}" + CHATML)
    tokenizer.bos_token = "<|endoftext|>"
    row = encoded("a", "b", ChatEncoder(tokenizer, {}))
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


def test_a_template_that_writes_behind_the_end_of_turn() -> None:
    tokenizer = tiny_tokenizer(CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}")
    row = encoded("a", "b", ChatEncoder(tokenizer, {}))
    assert tokenizer.decode(row.input_ids[row.target_start :]) == "b" + END


def test_a_template_that_puts_thinking_into_the_generation_prompt() -> None:
    tokenizer = tiny_tokenizer(CHATML + "{% if add_generation_prompt and not think %}<no think>{% endif %}")
    row = encoded("a", "b", ChatEncoder(tokenizer, {"think": False}))
    assert tokenizer.decode(row.input_ids[: row.target_start]).endswith("assistant\n<no think>")
    assert tokenizer.decode(row.input_ids[row.target_start :]) == "b" + END


def test_a_template_that_ends_no_turn_is_refused() -> None:
    tokenizer = tiny_tokenizer("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    with pytest.raises(ConfigError, match="without a special token"):
        ChatEncoder(tokenizer, {})


OPENING = CHATML.replace("assistant\n", "assistant\n<think>\n")


@pytest.mark.parametrize("is_token", [False, True])
def test_a_student_whose_template_begins_to_think_learns_to_end_it(*, is_token: bool) -> None:
    tokenizer = tiny_tokenizer(OPENING)
    if is_token:
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    encoder = ChatEncoder(tokenizer, {})
    row = encoded("a", "It is 4.", encoder)
    assert row.input_ids[: row.target_start] == encoder.prompt_ids(with_history("a"))
    assert tokenizer.decode(row.input_ids[: row.target_start]).endswith("<think>\n")
    learnt = row.input_ids[row.target_start :]
    assert tokenizer.decode(learnt) == "</think>\n\nIt is 4." + END
    assert (tokenizer.convert_tokens_to_ids("</think>") in learnt) == is_token


def test_a_student_whose_template_ends_its_thinking_learns_the_answer_alone() -> None:
    tokenizer = tiny_tokenizer(OPENING.replace("<think>\n", "<think>\n\n</think>\n\n"))
    row = encoded("a", "It is 4.", ChatEncoder(tokenizer, {}))
    assert tokenizer.decode(row.input_ids[row.target_start :]) == "It is 4." + END


def test_a_prompt_about_thinking_begins_none() -> None:
    row = encoded("What is <think>?", "A tag.")
    assert TOKENIZER.decode(row.input_ids[row.target_start :]) == "A tag." + END
