"""Readers that wait for the engines, and never for ever."""

from cgd_ray.execution.backpressure import ReadAheadLimit
from cgd_ray.execution.coordinator import _Coordinator


def test_reading_stops_where_the_stream_is_full_and_goes_on_where_rows_have_left() -> None:
    pace = ReadAheadLimit(500)
    assert pace.may_read(0, 499)
    assert pace.may_read(1, 8192)  # however many they are: none leaves its reader before all are read
    assert not pace.may_read(2, 1)
    pace.leave(8191)
    assert not pace.may_read(2, 1)
    pace.leave(1)
    assert pace.may_read(2, 1)
    assert not pace.may_read(3, 1)


def test_what_was_granted_is_read_again_at_once_and_counts_once() -> None:
    pace = ReadAheadLimit(100)
    assert pace.may_read(0, 256)
    assert not pace.may_read(1, 1)
    assert pace.may_read(0, 256)
    pace.leave(256)
    assert pace.may_read(1, 1)


def test_rows_leave_the_stream_with_the_last_engine() -> None:
    coordinator = _Coordinator("teacher", 1)
    assert coordinator.may_read(0, 2)
    for engine in ("student", "teacher"):
        coordinator.arrive(engine)
        coordinator.begin(engine, engine, ["a", "b"])
    coordinator.end("student", "student", ["a", "b"], {}, None)
    assert not coordinator.may_read(1, 1)
    coordinator.end("teacher", "teacher", ["a", "b"], {}, None)
    assert coordinator.may_read(1, 1)
