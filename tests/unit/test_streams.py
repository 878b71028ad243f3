"""Streams: pure functions of their name, the same on every machine and in every backend."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zootools.rng import data_order, dropout_bits, dropout_key, stream


def test_a_stream_draws_the_same_numbers_whenever_it_is_asked_for() -> None:
    assert stream(1, "init", "fc1").random(5).tolist() == stream(1, "init", "fc1").random(5).tolist()


def test_streams_of_different_names_differ() -> None:
    names = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 1), (1, "a", 2), (1, "a", 1, 2), (12, "a"), (1, "a", 12)]
    draws = {tuple(stream(*name).random(4)) for name in names}
    assert len(draws) == len(names)


def test_no_global_generator_is_touched() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    stream(1, "x").random(100)
    data_order(1, 1, 100)
    dropout_bits(dropout_key(1, 1, "fc1"), np.arange(100))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


@given(st.integers(0, 2**63 - 1), st.integers(1, 1000), st.integers(1, 200))
def test_a_data_order_shows_every_image_once(seed: int, epoch: int, count: int) -> None:
    order = data_order(seed, epoch, count)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(count))


def test_data_orders_differ_between_seeds_and_epochs() -> None:
    orders = {tuple(data_order(seed, epoch, 50)) for seed in range(5) for epoch in range(1, 5)}
    assert len(orders) == 20


def test_dropout_bits_are_the_same_for_integers_numpy_and_torch() -> None:
    key, counters = dropout_key(42, 3, "conv1"), np.arange(1000, dtype=np.int64) * 7_919_993
    bits = dropout_bits(key, counters)
    assert bits.tolist() == [dropout_bits(key, counter) for counter in counters.tolist()]
    assert bits.tolist() == dropout_bits(torch.tensor(key), torch.from_numpy(counters)).tolist()
    assert bits.dtype == np.int64
    assert bits.min() >= 0
    assert bits.max() < 2**32


def test_dropout_bits_are_what_they_were_when_the_first_zoo_was_built() -> None:
    assert dropout_key(42, 3, "conv1") == 2975662717
    bits = [dropout_bits(1, 0), dropout_bits(1, 1), dropout_bits(2**32 - 1, 2**31)]
    assert bits == [
        2726825882,
        937183788,
        1860131716,
    ]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7])
def test_dropout_bits_fall_below_a_rate_as_often_as_it_says(rate: float) -> None:
    bits = dropout_bits(dropout_key(7, 1, "fc1"), np.arange(100_000))
    assert (bits < int(rate * 2**32)).mean() == pytest.approx(rate, abs=0.006)


def test_dropout_masks_of_different_keys_are_not_related() -> None:
    keys = [dropout_key(seed, epoch, layer) for seed in (1, 2) for epoch in (1, 2) for layer in ("a", "b")]
    masks = np.stack([dropout_bits(key, np.arange(20_000)) < 2**31 for key in keys]).astype(float)
    correlation = np.corrcoef(masks) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.04
