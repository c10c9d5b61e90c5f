"""Generation: drafts, direct answers, critiques, refinements; and what curation keeps of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cgd_ray.config.base import Section

PositiveInt = Annotated[int, Field(ge=1)]


class Sampling(Section):
    """Decoding of a stage. A model's own generation defaults never apply."""

    max_tokens: PositiveInt = 1024
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy, the paper's setting."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    """Mixed with the row's id and sample into each completion's seed; null takes `run.seed`."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the model's chat template, for instance `{enable_thinking: false}`."""


class DraftStage(Sampling):
    """y': the untrained student's answer to the bare prompt."""

    samples: PositiveInt = 1
    """Drafts per prompt, each with a critique and refinement of its own."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "samples above 1 with temperature 0: greedy drafts are all the same. Fix: set temperature above 0"
            )
        return self


class CritiqueStage(Sampling):
    """c: the teacher's explanation of what is right and wrong in the draft, with a verdict."""

    reference: Literal["none", "teacher", "dataset"] = "none"
    """Shown to the critic beside the draft: nothing (the paper's setting), its own direct answer (helps small
    teachers), or the data set's reference (which leaks into the training target)."""

    verdict: Literal["written", "asked"] = "written"
    """What happens if a critique ends without its verdict line: nothing, or one more request in the same conversation,
    for one word of two (vLLM can write no other), which is added as that line."""


class AnswerStage(Sampling):
    """y_T: the teacher's direct answer, needed by `critique.reference: teacher` and the method `distill`."""

    enabled: bool = False


class GenerationSection(Section):
    """The two chains: the student's [draft] and the teacher's [answer?, critique, refine]."""

    execution: Literal["auto", "streaming", "staged"] = "auto"
    """`streaming` runs both engines at once, `staged` one after the other; `auto` streams where both fit."""
    prompts: str = "default"
    """How the critic is asked. `explanatory` (the paper's setting): where and why the draft errs, without a solution.
    `stepwise`: each step judged, up to the first wrong one. `default`, or `solve-first`: the critic solves the question
    first, which helps small teachers and states the answer in the critique. Or a directory with `critique.jinja`,
    `refine.jinja` and `context.jinja`; `again.jinja` and `cft.jinja` are the default's where it has none."""
    draft: DraftStage = DraftStage()
    answer: AnswerStage = AnswerStage()
    critique: CritiqueStage = CritiqueStage()
    refine: Sampling = Sampling()
    max_total_tokens: PositiveInt | None = None
    """Prompt plus completion tokens that one command may spend on generation; then the run stops and can be resumed."""
    max_failed_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a stage's rows that may fail before the run stops: judged on at least 20 started rows with a one-sided
    confidence bound. Over-long prompts are skipped and do not count."""

    retry_quarantined: bool = False
    """Try rows again that crashed their engine, as failed rows always are: after a fix of the engine, or on nodes with
    more memory."""

    stall_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds without progress (no row finishes a stage, no engine loads) after which the run stops. Choose it longer
    than the longest completion and than new nodes take to start."""

    @property
    def needs_answer(self) -> bool:
        """Whether the teacher's direct answer is generated."""
        return self.answer.enabled or self.critique.reference == "teacher"


class CurationSection(Section):
    """Which generated rows become training examples. Truncated and failed rows never do."""

    require_verdict: bool = True
    """Drop critiques without a parseable verdict."""
    drop_mentions: bool = True
    """Drop refinements that mention the critique or the draft: the student would learn to mention what no user
    wrote."""
    require_correct: bool = False
    """Drop refinements that the grader marks wrong against the reference (needs `data.reference_column` or demo
    data)."""
    max_refinement_tokens: PositiveInt | None = None
    """Drop refinements with more of the teacher's tokens than this."""
