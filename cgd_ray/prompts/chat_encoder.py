"""Encode conversations as token ids, with the tokenizer's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cgd_ray.errors import ConfigError
from cgd_ray.prompts.chat import as_messages, encode_chat, require_turns
from cgd_ray.prompts.conversation import Conversation, History, SkippedRow, Turn, sample_text, with_history
from cgd_ray.prompts.thinking import opened_tag

_SENTINEL = "targettargettarget"
SAMPLE = Conversation(with_history(sample_text("The question")), sample_text("The answer to be learnt"))
"""Conversation to test chat templates with."""

_SAMPLE_DRAFT = (Turn("assistant", sample_text("A first answer")), Turn("user", sample_text("A second question")))


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row; the positions from `target_start` on are supervised, the last one ends the turn."""

    input_ids: list[int]
    target_start: int


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes for training exactly what a chat endpoint encodes for the same messages.

    Texts of models may contain control tokens (`<|im_end|>`). They are encoded as ordinary text: as control tokens they
    would end the turn too early.

    Attributes:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        template_arguments: further arguments of the chat template, for instance `{"enable_thinking": False}`.

    Raises:
        ConfigError: the template ends its turns without a special token.
    """

    tokenizer: Any
    template_arguments: dict[str, Any]

    def __post_init__(self) -> None:
        if self._end_index is None:
            raise ConfigError(
                "student: its chat template ends the assistant's turn without a special token, so it could not learn "
                "to stop. Fix: name another one in student.engine.chat_template"
            )

    @property
    def end_of_turn(self) -> int:
        """Id of the token that ends the assistant's turn: learnt as the last token of every target."""
        return self._closing_ids[self._end_index or 0]

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of the turns, the user's last, with the generation prompt, as a chat endpoint sends them."""
        return self._template_ids(as_messages(turns), generation_prompt=True)

    def encode(self, conversation: Conversation) -> Encoded | SkippedRow:
        """Ids of the prompt, the target and its end-of-turn token, or why there is nothing to learn.

        Text of the template after the end-of-turn token (ChatML: a line break) is cut off: no model generates it.
        """
        if not conversation.target.strip():
            return SkippedRow("empty target")
        prompt = self.prompt_ids(conversation.turns)
        if self.closing_of_thinking:
            ends = self.tokenizer(self.closing_of_thinking, add_special_tokens=False)["input_ids"]
            return Encoded([*prompt, *ends, *self._target_ids(conversation.target), self.end_of_turn], len(prompt))
        turns = [*conversation.turns, Turn("assistant", conversation.target)]
        whole = self._template_ids(as_messages(turns), generation_prompt=False)
        if whole[: len(prompt)] == prompt:
            end = len(whole) - (len(self._closing_ids) - 1 - (self._end_index or 0))
            return (
                Encoded(whole[:end], len(prompt)) if end > len(prompt) + 1 else SkippedRow("its target is not rendered")
            )
        # The target's first characters merged with the generation prompt's last ("\n" + "\n"), or the two differ.
        # At inference the prompt is encoded alone, so the target is encoded alone as well.
        return Encoded([*prompt, *self._target_ids(conversation.target), self.end_of_turn], len(prompt))

    def require_teachable(self, history: History, *, multi_turn: bool) -> None:
        """Render and encode conversations like those of training, and check the supervised tokens.

        Raises:
            ConfigError: a turn is not rendered, or the supervised tokens are not the target and the end of its turn.
        """
        turns = (*history, *SAMPLE.turns)
        for shown in (turns, (*turns, *_SAMPLE_DRAFT)) if multi_turn else (turns,):
            target = Turn("assistant", SAMPLE.target)
            require_turns(self.tokenizer, shown, "student", self.template_arguments)
            require_turns(self.tokenizer, [*shown, target], "student", self.template_arguments)
            self._require_target(Conversation(shown, SAMPLE.target))

    def _require_target(self, conversation: Conversation) -> None:
        row, target = self.encode(conversation), conversation.target
        learnt = row.input_ids[row.target_start :] if isinstance(row, Encoded) else []
        said = self.tokenizer.decode(learnt, clean_up_tokenization_spaces=False)
        wanted = self.closing_of_thinking + target + self.tokenizer.decode([self.end_of_turn])
        said, wanted = said.strip(), wanted.strip()
        if said != wanted:
            pairs = enumerate(zip(said, wanted, strict=False))
            differs = next((place for place, (one, other) in pairs if one != other), min(len(said), len(wanted)))
            shown = slice(max(0, differs - 20), None)
            raise ConfigError(
                f"student: of the answer {wanted[shown][:60]!r} its chat template and tokenizer make "
                f"{said[shown][:60]!r} to learn. Fix: name another template in student.engine.chat_template"
            )

    def _template_ids(self, messages: list[dict[str, str]], *, generation_prompt: bool) -> list[int]:
        return encode_chat(self.tokenizer, messages, add_generation_prompt=generation_prompt, **self.template_arguments)

    def _target_ids(self, text: str) -> list[int]:
        # Control tokens are the special ones and those that the template names (`<tool_call>`), also in this check.
        template = f"{{% if false %}}{self.tokenizer.chat_template}{{% endif %}}{{{{ messages[0]['content'] }}}}"
        alone = [{"role": "assistant", "content": text}]
        return encode_chat(self.tokenizer, alone, add_generation_prompt=False, chat_template=template)

    @cached_property
    def closing_of_thinking(self) -> str:
        """Text that the student must write first if its template's generation prompt opens a thinking block.

        The student is trained to close the block at once: an answer inside it would be cut off with it. The text is
        supervised, since no template writes it at inference.
        """
        rendered = [
            self.tokenizer.apply_chat_template(
                as_messages(with_history("x")), tokenize=False, add_generation_prompt=opens, **self.template_arguments
            )
            for opens in (False, True)
        ]
        tag = opened_tag(rendered[1].removeprefix(rendered[0]))
        return f"{tag}\n\n" if tag else ""

    @cached_property
    def _closing_ids(self) -> list[int]:
        """Ids of the template's text after the assistant's text."""
        text = self.tokenizer.apply_chat_template(
            as_messages([*with_history("x"), Turn("assistant", _SENTINEL)]), tokenize=False, **self.template_arguments
        )
        ids: list[int] = self.tokenizer(text.rpartition(_SENTINEL)[2], add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _end_index(self) -> int | None:
        special = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return next((place for place, index in enumerate(self._closing_ids) if index in special), None)
