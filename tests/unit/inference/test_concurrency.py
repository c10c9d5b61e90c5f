"""The gate before an endpoint: the oldest first, nobody after a refusal, then slowly more."""

import asyncio
import itertools

from cgd_ray.inference.openai.concurrency import AimdConcurrencyLimiter


class Endpoint:
    """Counts who is inside a gate."""

    def __init__(self, most: int) -> None:
        self.gate = AimdConcurrencyLimiter(most)
        self.entered: list[int] = []
        self.inside: dict[int, asyncio.Event] = {}
        self.sent: dict[int, float] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def come(self, *ages: int) -> None:
        for age in ages:
            self.tasks.add(asyncio.create_task(self._pass(age)))
        await settle()

    async def leave(self, age: int) -> None:
        self.inside.pop(age).set()
        await settle()

    async def _pass(self, age: int) -> None:
        async with self.gate.passage(age) as sent:
            self.sent[age] = sent
            self.entered.append(age)
            self.inside[age] = asyncio.Event()
            await self.inside[age].wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_so_many_at_a_time_and_the_oldest_first() -> None:
    async def scenario() -> list[int]:
        endpoint = Endpoint(2)
        await endpoint.come(5, 6, 9, 7, 1)
        await endpoint.leave(5)
        await endpoint.leave(6)
        return endpoint.entered

    assert asyncio.run(scenario()) == [5, 6, 1, 7]


def test_after_a_refusal_nobody_goes_for_the_time_and_then_one() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        endpoint = Endpoint(8)
        await endpoint.come(*range(8))
        for age in range(8):
            endpoint.gate.refused(endpoint.sent[age], 0.2)
        for age in range(8):
            endpoint.gate.served(endpoint.sent[age])  # what was under way says nothing of what may come
            await endpoint.leave(age)
        await endpoint.come(*range(10, 18))
        during = endpoint.entered[8:]
        await asyncio.sleep(0.3)
        return during, endpoint.entered[8:]

    assert asyncio.run(scenario()) == ([], [10])


def test_answers_let_more_through_twice_as_many_up_to_half_and_one_by_one_from_there() -> None:
    async def scenario() -> list[int]:
        endpoint, widths = Endpoint(16), []
        await endpoint.come(*range(16))
        endpoint.gate.refused(endpoint.sent[0], 0)
        for age in range(16):
            await endpoint.leave(age)
        await endpoint.come(*range(100, 400))
        for _ in range(9):
            inside = list(endpoint.inside)
            widths.append(len(inside))
            for age in inside:
                endpoint.gate.served(endpoint.sent[age])
                endpoint.inside.pop(age).set()
            await settle()
            await asyncio.sleep(0.01)
        for task in endpoint.tasks:
            task.cancel()
        return widths

    widths = asyncio.run(scenario())
    assert widths[:4] == [1, 2, 4, 8]
    assert all(before <= after <= before + 1 for before, after in itertools.pairwise(widths[3:]))
    assert widths[-1] > 10


def test_refusals_of_what_was_under_way_count_once() -> None:
    async def scenario() -> int:
        endpoint = Endpoint(16)
        await endpoint.come(*range(16))
        for age in range(16):
            endpoint.gate.refused(endpoint.sent[age], 0)
            await endpoint.leave(age)
        await endpoint.come(*range(100, 200))
        for _ in range(3):  # slow start up to half of sixteen, not to half of half of it
            for age in list(endpoint.inside):
                endpoint.gate.served(endpoint.sent[age])
                endpoint.inside.pop(age).set()
            await settle()
            await asyncio.sleep(0.01)
        wide = len(endpoint.inside)
        for task in endpoint.tasks:
            task.cancel()
        return wide

    assert asyncio.run(scenario()) == 8


def test_who_gives_up_waiting_takes_nobodys_place() -> None:
    async def scenario() -> list[int]:
        endpoint = Endpoint(1)
        await endpoint.come(1, 2, 3)
        [second] = [
            task for task in endpoint.tasks if task.get_name() == sorted(t.get_name() for t in endpoint.tasks)[1]
        ]
        second.cancel()
        await endpoint.leave(1)
        return endpoint.entered

    assert asyncio.run(scenario()) == [1, 3]
