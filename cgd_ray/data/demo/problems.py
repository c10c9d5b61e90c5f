"""The demo's source: endless multi-step word problems with worked solutions, from a seed alone."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cgd_ray.data.demo import more_seen_kinds, novel_kinds, seen_kinds
from cgd_ray.data.demo.words import Draw, Worked
from cgd_ray.data.rows import SourceRow
from cgd_ray.storage.fingerprint import derived_seed

DEMO_VERSION = 2
"""Part of the fingerprint of demo prompts: raise it whenever the text of a problem changes."""

Kind = Callable[[Draw, int], Worked]

SEEN_KINDS: tuple[Kind, ...] = (
    seen_kinds.shopping,
    seen_kinds.travel,
    seen_kinds.sharing,
    seen_kinds.discount,
    seen_kinds.ages,
    seen_kinds.wages,
    seen_kinds.stock,
    more_seen_kinds.saving,
    more_seen_kinds.cooking,
    more_seen_kinds.tickets,
    more_seen_kinds.fencing,
    more_seen_kinds.comparing,
    more_seen_kinds.converting,
    more_seen_kinds.reading,
)

NOVEL_KINDS: tuple[Kind, ...] = (
    novel_kinds.averages,
    novel_kinds.fractions,
    novel_kinds.fuel,
    novel_kinds.seating,
    novel_kinds.growing,
    novel_kinds.phone_plan,
    novel_kinds.machines,
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
    """Whether its kind is never trained on."""


def demo_problem(seed: int, index: int, max_steps: int, *, novel: bool) -> DemoProblem:
    """Problem `index` of the seen or of the novel kinds: a pure function of its arguments.

    Kinds take turns, so that every stretch of problems has each of them; steps are drawn from 1 to
    `max_steps` (a kind with fewer steps stops at its own maximum).
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
