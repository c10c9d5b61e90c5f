"""Leases: one at a time, the dead do not hold anything, the living are not robbed."""

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest

from cgd_ray.errors import CgdError, StoppedError
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.lease import Claim, Lease

BEAT = 0.3  # seconds: beside other tests on two cores a tenth is late now and then


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def lease(store: Store, beat: float = BEAT) -> Lease:
    return Lease(store, "tables/draft/f", beat_seconds=beat)


def claims(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.glob("tables/draft/f/.lease/*.json")]


def write(store: Store, claim: Claim) -> None:
    store.write(f"tables/draft/f/.lease/{claim.name}.json", json.dumps(dataclasses.asdict(claim)).encode())


def test_who_does_not_wait_is_told_who_holds_it(store: Store, tmp_path: Path) -> None:
    first, second = lease(store), lease(store)
    assert not first.take(wait=True)
    with pytest.raises(CgdError, match=rf": process {os.getpid()} on .*give another run.name"):
        second.take(wait=False)
    first.give_back()
    assert claims(tmp_path) == []


def test_who_waits_gets_it_after_the_holder(store: Store) -> None:
    first, second = lease(store), lease(store)
    first.take(wait=True)
    threading.Timer(5 * BEAT, first.give_back).start()
    started = time.monotonic()
    assert second.take(wait=True)
    assert time.monotonic() - started > 4 * BEAT
    second.give_back()


def test_of_many_that_come_together_one_holds_it_at_a_time(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []
    beat = 3 * BEAT  # of several threads in one process, each of which writes and lists

    def work(number: int) -> None:
        mine = lease(store, beat)
        mine.take(wait=True)
        inside.append(number)
        time.sleep(3 * beat)
        if not mine.lost:
            most.append(len(inside))
        inside.remove(number)
        mine.give_back()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) >= 3
    assert most.count(1) >= 3  # at most one pair may meet for a beat


def test_a_dead_process_of_this_host_holds_nothing(store: Store) -> None:
    mine = lease(store)
    write(store, dataclasses.replace(mine._mine, name="0", pid=2**22 + 1, holds=True))
    assert not mine.take(wait=True)  # nobody was waited for
    mine.give_back()


def test_a_holder_elsewhere_without_a_sign_of_life_is_given_up_after_a_while(store: Store) -> None:
    mine = lease(store)
    write(store, dataclasses.replace(mine._mine, name="0", machine="elsewhere", holds=True))
    started = time.monotonic()
    assert mine.take(wait=True)
    assert 5 * BEAT < time.monotonic() - started < 30 * BEAT
    mine.give_back()


def test_of_two_holders_the_higher_name_has_lost_it(store: Store) -> None:
    mine = lease(store)
    mine.take(wait=True)
    mine.require()
    write(store, dataclasses.replace(mine._mine, name="0", holds=True))
    time.sleep(8 * BEAT)
    with pytest.raises(StoppedError, match="another command works on"):
        mine.require()
    mine.give_back()


@pytest.mark.parametrize("taken", [False, True])
def test_a_holder_that_could_not_write_looks_whether_somebody_took_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, taken: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    mine = lease(store)
    mine.take(wait=True)
    if taken:  # by somebody who saw no sign of life
        write(store, dataclasses.replace(mine._mine, name="f" * 17, holds=True))
    with monkeypatch.context() as broken:
        broken.setattr(Store, "write", full)
        time.sleep(8 * BEAT)
        assert mine.lost == taken
    time.sleep(2 * BEAT)
    assert mine.lost == taken
    mine.give_back()


def test_it_is_given_back_at_once_where_the_storage_does_not_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked = threading.Event(), threading.Event()

    def away(*_: object) -> None:
        asked.set()
        answered.wait(60)

    monkeypatch.setattr("cgd_ray.storage.lease._GIVE_SECONDS", BEAT)
    mine = lease(store)
    mine.take(wait=True)
    monkeypatch.setattr(Store, "write", away)
    assert asked.wait(10)
    started = time.monotonic()
    mine.give_back()
    assert time.monotonic() - started < 10
    answered.set()


@pytest.mark.parametrize("name", ["0", "z"])
def test_a_sign_of_life_that_was_long_under_way_does_not_take_the_folder_back(
    store: Store, tmp_path: Path, name: str
) -> None:
    slow = threading.Event()

    class Slow(Store):
        def write(self, name: str, content: bytes) -> None:
            if slow.is_set():
                slow.clear()
                time.sleep(15 * BEAT)
            super().write(name, content)

    first, second = lease(Slow(str(tmp_path))), lease(store)
    first._mine = dataclasses.replace(first._mine, name=name)
    first.take(wait=True)
    slow.set()
    assert second.take(wait=True)
    time.sleep(15 * BEAT)
    with pytest.raises(StoppedError, match="another command works on"):
        first.require()
    second.require()
    for one in (first, second):
        one.give_back()
