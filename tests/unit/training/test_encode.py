"""The encoded table: one part per part of the examples, and the same rows for methods that are compared."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cgd_ray.config.training import MethodOrMix, TrainingSection
from cgd_ray.estimation.training import encode_sample
from cgd_ray.methods import Example
from cgd_ray.prompts.chat_encoder import ChatEncoder, Encoded
from cgd_ray.prompts.conversation import Conversation, SkippedRow, with_history
from cgd_ray.prompts.templates import load_prompts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import EXAMPLES
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encode import EncodedExamples, Encoding, encode_examples
from tests.unit.training.tiny import example, tiny_tokenizer

ENCODER = ChatEncoder(tiny_tokenizer(), {})
PROMPTS = load_prompts("default")


def table(root: Path, *parts: list[Example]) -> Table:
    made = Table(Store(str(root)), "examples", "test", EXAMPLES)
    for number, rows in enumerate(parts):
        made.write_part(f"part-{number:06d}", [{name: vars(row)[name] for name in EXAMPLES.names} for row in rows])
    return made


def encode(examples: Table, **training: Any) -> EncodedExamples:
    return encode_examples(examples, Encoding(TrainingSection(**training), 0, PROMPTS, ENCODER))


def keys(encoded: EncodedExamples) -> list[str]:
    return [str(key) for key in encoded.table.read(columns=["prompt_id", "sample"])["prompt_id"].to_pylist()]


def test_parts_follow_those_of_the_examples_and_counts_add_up(tmp_path: Path) -> None:
    examples = table(tmp_path, [example(number) for number in range(5)], [example(number) for number in range(5, 8)])
    encoded = encode(examples)
    assert [part.num_rows for part in encoded.table.batches()] == [5, 3]
    assert encoded.counts.rows == 8
    lengths = [len(ids) for ids in encoded.table.read()["input_ids"].to_pylist()]
    assert encoded.counts.total_tokens == sum(lengths)
    again = encode(examples)
    assert (again.table, again.counts) == (encoded.table, encoded.counts)


def test_a_row_that_one_compared_method_cannot_use_is_left_out_for_all(tmp_path: Path) -> None:
    usual = example(2)
    examples = table(tmp_path, [example(0), example(1, critique="It is wrong. " * 30), usual])
    limit = len(ENCODER.prompt_ids(with_history(PROMPTS.context(usual.prompt, usual.draft, usual.critique)))) + 40
    methods: list[MethodOrMix] = ["refsft", "cgd-no-critique", "cgd"]
    alone = [encode(examples, method=method, max_length=limit) for method in methods]
    assert [made.counts.rows for made in alone] == [3, 3, 2]
    matched = [encode(examples, method=method, compared_with=methods, max_length=limit) for method in methods]
    assert [keys(made) for made in matched] == [[example(0).prompt_id, example(2).prompt_id]] * 3
    assert matched[0].counts.dropped == {"longer than training.max_length, most of it critique (as cgd)": 1}
    assert matched[2].counts.dropped == {"longer than training.max_length, most of it critique": 1}


def test_compared_methods_are_encoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = table(tmp_path, [example(number) for number in range(4)])
    methods: list[MethodOrMix] = ["cgd-no-critique", "cgd", "mix"]
    alone = {method: encode(examples, method=method, max_length=999).table.read() for method in methods}
    seen = Counter[str]()
    encode_once = ChatEncoder.encode

    def counted(encoder: ChatEncoder, conversation: Conversation) -> Encoded | SkippedRow:
        seen[conversation.turns[-1].content + conversation.target] += 1
        return encode_once(encoder, conversation)

    monkeypatch.setattr(ChatEncoder, "encode", counted)
    for method in methods:
        assert encode(examples, method=method, max_length=999, compared_with=methods).table.read() == alone[method]
    assert (len(seen), set(seen.values())) == (4 * len({"cgd-no-critique", "cgd", "refsft"}), {1})


@pytest.mark.parametrize("method", ["cgd", "cgd-shuffled"])
def test_shuffled_shows_the_critique_of_another_row_of_the_part(tmp_path: Path, method: MethodOrMix) -> None:
    rows = [example(number, critique=f"critique of number {number}") for number in range(4)]
    encoded = encode(table(tmp_path, rows), method=method)
    own = [
        f"number {number}" in ENCODER.tokenizer.decode(ids)
        for number, ids in enumerate(encoded.table.read()["input_ids"].to_pylist())
    ]
    assert own == [method == "cgd"] * 4


def test_the_only_row_of_a_verdict_has_no_other_critique(tmp_path: Path) -> None:
    rows = [example(0), example(1), example(2, verdict="right")]
    encoded = encode(table(tmp_path, rows), method="cgd-shuffled")
    assert encoded.counts.dropped == {"no other prompt with its verdict": 1}


def test_what_is_told_of_a_sample_is_what_becomes_of_it(tmp_path: Path) -> None:
    rows = [example(number) for number in range(6)]
    training = TrainingSection(method="cgd", compared_with=["cgd", "cgd-shuffled"])
    told = encode_sample(Encoding(training, 0, PROMPTS, ENCODER), rows, complete=6)
    made = encode_examples(table(tmp_path, rows), Encoding(training, 0, PROMPTS, ENCODER))
    assert (
        (len(told.encoded), sum(told.lengths)) == (made.counts.rows, made.counts.total_tokens) == (6, sum(told.lengths))
    )
