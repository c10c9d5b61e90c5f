import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd_ray.training.dataset.packing import batches, join, optimiser_steps, padded, padding, plan_passes

LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=40)


@given(lengths=LENGTHS, workers=st.integers(1, 5), capacity=st.integers(50, 400))
def test_every_row_is_in_exactly_one_pass_and_passes_hold_the_capacity(
    lengths: list[int], workers: int, capacity: int
) -> None:
    plan = plan_passes(lengths, workers, capacity)
    assert sorted(row for passes in plan for members in passes for row in members) == list(range(len(lengths)))
    assert len({len(passes) for passes in plan}) == 1
    for members in (members for passes in plan for members in passes):
        assert len(members) <= 1 or sum(lengths[row] for row in members) <= capacity


@given(lengths=LENGTHS, workers=st.integers(1, 5))
def test_workers_carry_about_the_same_tokens(lengths: list[int], workers: int) -> None:
    plan = plan_passes(lengths, workers, 400)
    loads = [sum(lengths[row] for members in passes for row in members) for passes in plan]
    assert max(loads) - min(loads) <= max(lengths)


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(100, 700, 64).tolist()
    passes = plan_passes(lengths, 1, 2048)[0]
    assert sum(lengths) / (2048 * len(passes)) > 0.9


@pytest.mark.parametrize("length", [3, 7, 8, 9])
def test_a_padded_pass_has_an_unsupervised_row_more(length: int) -> None:
    rows = join([(np.arange(2, 2 + length), 1)])
    longer = padded(rows, 8)
    assert len(longer.input_ids) % 8 == 0
    assert 0 < len(longer.input_ids) - length <= 8
    assert longer.position_ids[length:].tolist() == list(range(len(longer.input_ids) - length))
    assert longer.input_ids[:length].tolist() == rows.input_ids.tolist()
    assert (longer.labels is rows.labels, longer.predicting is rows.predicting) == (True, True)


def test_join_restarts_positions_and_predicts_only_targets() -> None:
    rows = [(np.array([1, 2, 3, 4]), 2), (np.array([5, 6, 7]), 1)]
    packed = join(rows)
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packed.labels.tolist() == [3, 4, 6, 7]
    assert packed.predicting.tolist() == [1, 2, 4, 5]
    assert len(padding().labels) == 1


def test_an_epoch_holds_each_row_once_and_its_last_batch_is_kept() -> None:
    seen = [batch.tolist() for batch in batches(10, 4, 2, seed=3)]
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert len(seen) == optimiser_steps(10, 4, 2)
    for epoch in (seen[:3], seen[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(10))
    assert seen[:3] != seen[3:]


@given(first=st.integers(0, 6))
def test_order_from_a_step_on_is_the_tail_of_the_whole_order(first: int) -> None:
    whole = [batch.tolist() for batch in batches(10, 4, 2, seed=3)]
    assert [batch.tolist() for batch in batches(10, 4, 2, seed=3, first_step=first)] == whole[first:]
