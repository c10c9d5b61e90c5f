"""Prompt sources: where x and, if there is one, its reference answer come from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cgd_ray.config.base import Section
from cgd_ray.config.places import Place

PositiveInt = Annotated[int, Field(ge=1)]


class Holdout(Section):
    """The part that is never trained on. A prompt's membership is a hash of its id, so growing `limit` moves none."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of all prompts whose hash falls below it."""

    count: PositiveInt | None = None
    """Exactly this many: the smallest hashes of the whole source."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("fraction and count. Fix: give one of them")
        return self


class DataCommon(Section):
    """What all sources share."""

    prompt_template: Annotated[str, Field(min_length=1)] = "{{ prompt }}"
    """Jinja text that renders the user's turn x once from the row's columns (`prompt` is the prompt column). The same
    text is drafted on, trained on, evaluated and served."""

    system_prompt: Annotated[str, Field(pattern=r"\S")] | None = None
    """A system turn before every prompt, everywhere, the exported chat template included; a conversation that has its
    own keeps that."""

    limit: PositiveInt | None = None
    """At most this many prompts to generate and train on, in source order (held-out prompts are counted apart)."""

    holdout: Holdout = Holdout(fraction=0.1)
    """The held-out part, used by evaluation only."""


class DemoData(DataCommon):
    """A seeded generator of multi-step word problems with gold answers; needs no file and no network."""

    type: Literal["demo"]

    limit: PositiveInt = 64
    """Number of training problems."""

    holdout: Holdout = Holdout(count=32)
    """Held-out problems; a third of them are of kinds that training never sees."""

    seed: int | None = None
    """Seed of the problems; none takes `run.seed`."""

    max_steps: Annotated[int, Field(ge=1, le=5)] = 3
    """Reasoning steps of the hardest problem."""


class ColumnData(DataCommon):
    """What the sources with columns share."""

    prompt_column: str = "prompt"
    """Column with the question; text in every row. Not read where `messages_column` is given."""

    messages_column: str | None = None
    """Column with conversations: lists of objects with `role` and `content`, or `from` and `value` (ShareGPT). The last
    turn of the user is the prompt; what stands before it is shown wherever the prompt is."""

    system_column: str = "system"
    """Column beside `messages_column` with the system turn of conversations that have none among their messages; it
    need not be there."""

    max_skipped_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Rows that cannot be used (a blank prompt, a line that is not JSON) are left out and counted, up to this share of
    those that were read; `cgd inspect --skipped` shows them."""

    reference_column: str | None = None
    """Column with the data set's own answer; needed for `sft`, grading and accuracy. The `messages_column` itself where
    it is the assistant's turn behind the prompt."""

    @property
    def question_column(self) -> tuple[str, str]:
        """The recipe's key and the name of the column with the question."""
        if self.messages_column is not None:
            return "data.messages_column", self.messages_column
        return "data.prompt_column", self.prompt_column


class JsonlData(ColumnData):
    """One JSON object per line, local or S3; `path` may be a file, a glob or a directory."""

    type: Literal["jsonl"]
    path: Place


class ParquetData(ColumnData):
    """Parquet, local or S3; `path` may be a file, a glob or a directory."""

    type: Literal["parquet"]
    path: Place


class HfData(ColumnData):
    """A Hugging Face data set (hub name or a directory that `datasets` can load)."""

    type: Literal["hf"]
    dataset: Place
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """Commit, tag or branch on the hub. None takes the newest commit, which `cgd validate` shows."""


DataSection = Annotated[DemoData | JsonlData | ParquetData | HfData, Field(discriminator="type")]
