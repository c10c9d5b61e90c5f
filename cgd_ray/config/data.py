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
    """System turn before every prompt, in all phases and in the exported chat template. A conversation with a system
    turn of its own keeps that."""

    limit: PositiveInt | None = None
    """At most this many prompts to generate and train on, in source order (held-out prompts are counted apart)."""

    holdout: Holdout = Holdout(fraction=0.1)
    """The held-out part, used by evaluation only."""


class DemoData(DataCommon):
    """A seeded generator of multi-step word problems with gold answers; needs no file and no network."""

    type: Literal["demo"]

    limit: PositiveInt = 64
    """Number of problems to train on."""

    holdout: Holdout = Holdout(count=32)
    """Held-out problems; a third of them are of kinds that training never sees."""

    seed: int | None = None
    """Seed of the problems; null takes `run.seed`."""

    max_steps: Annotated[int, Field(ge=1, le=5)] = 3
    """Reasoning steps of the hardest problem."""


class ColumnData(DataCommon):
    """What the sources with columns share."""

    prompt_column: str = "prompt"
    """Column with the question, text in every row. Unused if `messages_column` is set."""

    messages_column: str | None = None
    """Column with conversations: lists of objects with `role` and `content`, or `from` and `value` (ShareGPT). The last
    user turn is the prompt; the turns before it are shown wherever the prompt is."""

    system_column: str = "system"
    """Optional column beside `messages_column` with the system turn of conversations whose messages have none."""

    max_skipped_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Rows that cannot be used (a blank prompt, a line that is not JSON) are skipped and counted, up to this share of
    the rows read; `cgd inspect --skipped` shows them. A larger share stops the run before generation."""

    reference_column: str | None = None
    """Column with the data set's own answer; needed for `sft`, grading and accuracy. Name the
    `messages_column` itself to take the assistant's turn behind the prompt."""

    choices_column: str | None = None
    """Column with the choices of each question: a list of texts, or an object with the lists `text` and `label`. Write
    `{{ choices }}` in the template; the reference becomes the letter of the right one, whether the column names its
    letter, its number from 0, or its text."""

    choices_columns: list[str] = []
    """Columns with one choice each, the right one first. They are shown in an order drawn from the question's hash."""

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
    """Commit, tag or branch on the hub. Null takes the newest commit, which `cgd validate` prints."""


DataSection = Annotated[DemoData | JsonlData | ParquetData | HfData, Field(discriminator="type")]
