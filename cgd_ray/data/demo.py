"""The demo's source: endless multi-step word problems with worked solutions, from a seed alone."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cgd_ray.data import demo_kinds, demo_more_kinds, demo_novel_kinds
from cgd_ray.data.demo_words import Draw, Worked
from cgd_ray.data.rows import SourceRow
from cgd_ray.storage.fingerprint import derived_seed

DEMO_VERSION = 2
"""Part of the fingerprint of demo prompts: raise it whenever the text of a problem changes."""

Kind = Callable[[Draw, int], Worked]

SEEN_KINDS: tuple[Kind, ...] = (
    demo_kinds.shopping,
    demo_kinds.travel,
    demo_kinds.sharing,
    demo_kinds.discount,
    demo_kinds.ages,
    demo_kinds.wages,
    demo_kinds.stock,
    demo_more_kinds.saving,
    demo_more_kinds.cooking,
    demo_more_kinds.tickets,
    demo_more_kinds.fencing,
    demo_more_kinds.comparing,
    demo_more_kinds.converting,
    demo_more_kinds.reading,
)

NOVEL_KINDS: tuple[Kind, ...] = (
    demo_novel_kinds.averages,
    demo_novel_kinds.fractions,
    demo_novel_kinds.fuel,
    demo_novel_kinds.seating,
    demo_novel_kinds.growing,
    demo_novel_kinds.phone_plan,
    demo_novel_kinds.machines,
)


@dataclass(frozen=True)
class DemoProblem:
    """One word problem."""

    prompt: str
    reference: str
    r"""A worked solution, one step a line, that ends in `\boxed{gold}`."""

    kind: str
    gold: str
    novel: bool
    """Whether training never sees its kind."""


def demo_problem(seed: int, index: int, max_steps: int, *, novel: bool) -> DemoProblem:
    """Problem `index` of the seen or of the novel kinds: a pure function of its arguments.

    Kinds take turns, so that every stretch of problems has each of them; steps are drawn from 1 to
    `max_steps` (a kind that knows fewer stops there).
    """
    kinds = NOVEL_KINDS if novel else SEEN_KINDS
    kind = kinds[index % len(kinds)]
    draw = Draw(derived_seed("demo", seed, index, "novel" if novel else "seen"))
    worked = kind(draw, draw.number(1, max_steps))
    reference = "\n".join([*worked.work, rf"The answer is \boxed{{{worked.answer}}}."])
    return DemoProblem(worked.question, reference, kind.__name__, worked.answer, novel)


def demo_rows(seed: int, max_steps: int, *, novel: bool) -> Iterator[SourceRow]:
    """The problems of the seen or of the novel kinds, without end."""
    part = "novel" if novel else "seen"
    for index in itertools.count():
        problem = demo_problem(seed, index, max_steps, novel=novel)
        yield SourceRow(
            values={"prompt": problem.prompt},
            prompt=problem.prompt,
            reference=problem.reference,
            kind=problem.kind,
            novel=novel,
            source=f"demo/{part}:{index + 1}",
        )
