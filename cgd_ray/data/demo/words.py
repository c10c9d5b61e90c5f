"""What the demo's word problems are made of: seeded draws, names, things, money."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Choice = TypeVar("Choice")

NAMES = (
    "Ada", "Amir", "Anna", "Ben", "Carla", "Chen", "Daria", "David", "Elif", "Emma", "Farid", "Grace", "Hana",
    "Hugo", "Ines", "Ivan", "Jonas", "Kofi", "Lena", "Liam", "Maya", "Mei", "Nadia", "Noah", "Olga", "Omar",
    "Paula", "Priya", "Quinn", "Rosa", "Samir", "Sofia", "Tariq", "Tess", "Uma", "Victor", "Wanda", "Yuki",
)  # fmt: skip

GOODS = (
    "notebooks", "pens", "mugs", "candles", "scarves", "puzzles", "lamps", "sandwiches", "plants", "posters",
    "cushions", "brushes", "bottles of juice", "boxes of tea", "bars of soap", "jars of honey",
)  # fmt: skip

TREATS = (
    "apples", "marbles", "stickers", "cookies", "shells", "walnuts", "beads", "plums", "postcards", "buttons",
    "strawberries", "crayons", "toy cars", "trading cards",
)  # fmt: skip


@dataclass(frozen=True)
class Worked:
    """A word problem with its solution."""

    question: str
    work: list[str]
    """One sentence a step, each with one equation; the last gives the answer."""

    answer: str
    """The gold answer: a number without unit or currency sign."""


class Draw:
    """Seeded choices."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  word problems, not secrets

    def number(self, low: int, high: int, step: int = 1) -> int:
        """A multiple of `step` counted from `low`, up to and including `high`."""
        return self._random.randrange(low, high + 1, step)

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """One of the choices."""
        return choices[self._random.randrange(len(choices))]

    def several(self, choices: Sequence[Choice], count: int) -> list[Choice]:
        """Distinct choices, in random order."""
        return self._random.sample(choices, count)

    def cents(self, low: int, high: int) -> int:
        """A price between two numbers of dollars, in cents: whole dollars half of the time, else quarters."""
        return self.number(low * 100, high * 100, self.pick((25, 100)))


def money(cents: int) -> str:
    """Dollars with their sign: `$3` or `$3.50`."""
    return f"${amount(cents)}"


def amount(cents: int) -> str:
    """Dollars without their sign, with two decimals unless they are whole."""
    return str(cents // 100) if cents % 100 == 0 else f"{cents // 100}.{cents % 100:02d}"
