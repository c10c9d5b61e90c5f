"""Readers that wait for the engines, and never for ever."""

from cgd_ray.execution.backpressure import Pace
from cgd_ray.execution.coordinator import _Ledger


def test_reading_stops_where_the_stream_is_full_and_goes_on_where_rows_have_left() -> None:
    pace = Pace(500)
    assert pace.may_read(0, 499)
    assert pace.may_read(1, 8192)  # however many they are: none leaves its reader before all are read
    assert not pace.may_read(2, 1)
    pace.leave(8191)
    assert not pace.may_read(2, 1)
    pace.leave(1)
    assert pace.may_read(2, 1)
    assert not pace.may_read(3, 1)


def test_what_was_granted_is_read_again_at_once_and_counts_once() -> None:
    pace = Pace(100)
    assert pace.may_read(0, 256)
    assert not pace.may_read(1, 1)
    assert pace.may_read(0, 256)
    pace.leave(256)
    assert pace.may_read(1, 1)


def test_rows_leave_the_stream_with_the_last_engine() -> None:
    ledger = _Ledger("teacher", 1)
    assert ledger.may_read(0, 2)
    for engine in ("student", "teacher"):
        ledger.arrive(engine)
        ledger.begin(engine, engine, ["a", "b"])
    ledger.end("student", "student", ["a", "b"], {}, None)
    assert not ledger.may_read(1, 1)
    ledger.end("teacher", "teacher", ["a", "b"], {}, None)
    assert ledger.may_read(1, 1)
