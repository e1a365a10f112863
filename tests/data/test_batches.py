"""Batches: a pure function of the step, so that a resume needs only a number."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from engine.data import DataError, EvalBatches, Normalise, Part, TrainBatches
from engine.data import batches as data_batches
from engine.data.augment import KINDS, augment
from engine.data.order import permutation
from engine.distribution.shares import Share
from engine.seeds import example_seeds


def part(count: int = 10, *, dtype: Any = np.uint8, first: int = 100) -> Part:
    """Examples numbered from ``first``, of twice as many images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (first + count, 4, 4, 1), dtype=np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return Part(images, np.arange(count, dtype=np.int64) % 3, np.arange(first, first + count, dtype=np.int64))


def equal(one: Any, two: Any) -> None:
    assert one.keys() == two.keys() == {"image", "label", "seeds", "index"}
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("augment", [(), ("flip", "crop", "contrast")])
def test_a_step_is_the_same_alone_and_in_a_row(augment: tuple[str, ...]) -> None:
    batches = TrainBatches(part(), batch_size=4, seed=3, augment=augment)
    again = TrainBatches(part(), batch_size=4, seed=3, augment=augment)
    found = list(batches.between(2, 9))
    assert len(found) == 7
    for step, batch in zip(range(2, 9), found, strict=True):
        equal(batch, again.at(step))


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_every_example_comes_once_an_epoch_and_the_last_step_is_what_is_left(size: int) -> None:
    batches = TrainBatches(part(), batch_size=size, seed=1)
    assert batches.per_epoch == -(-10 // size)
    orders = []
    for epoch in range(3):
        steps = [batches.at(epoch * batches.per_epoch + n) for n in range(batches.per_epoch)]
        sizes = [len(batch["index"]) for batch in steps]
        assert sizes == [size] * (10 // size) + ([10 % size] if 10 % size else [])
        orders.append(np.concatenate([batch["index"] for batch in steps]).tolist())
        assert sorted(orders[-1]) == list(range(100, 110))
    assert len({tuple(order) for order in orders}) == 3


def test_epochs_are_all_steps_of_so_many_epochs() -> None:
    batches = TrainBatches(part(), batch_size=4)
    found = list(batches.epochs(2))
    assert len(found) == 6
    equal(found[5], batches.at(5))
    assert list(batches.between(3, 3)) == []


def test_a_batch_holds_what_belongs_to_its_examples() -> None:
    source = part()
    batch = TrainBatches(source, batch_size=4, seed=5).at(4)  # step 1 of epoch 1
    positions = permutation(5, 1, 10, start=4, stop=8)
    index = source.index[positions]
    np.testing.assert_array_equal(batch["index"], index)
    np.testing.assert_array_equal(batch["label"], source.labels[positions])
    np.testing.assert_array_equal(batch["seeds"], example_seeds(5, 1, index))
    expected = (source.images[index].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert batch["image"].dtype == np.float32
    # a division and two steps of float32 on numbers below 1; compiled, they may be fused
    np.testing.assert_allclose(batch["image"], expected, atol=3e-7, rtol=0)


def test_augmentation_is_that_of_the_examples_seeds() -> None:
    source = part()
    batch = TrainBatches(source, batch_size=4, seed=5, augment=("flip", "crop")).at(1)
    images = source.images[batch["index"]].astype(np.float32) / np.float32(255)
    expected = (augment(images, batch["seeds"], ("flip", "crop")).numpy() - 0.5) / 0.5
    np.testing.assert_allclose(batch["image"], expected, atol=3e-7, rtol=0)


def test_an_example_looks_the_same_whatever_the_batch_size() -> None:
    """Flip and whole-pixel shifts compute nothing, so equality is exact."""
    options: dict[str, Any] = {"seed": 2, "augment": ("flip", "crop")}
    looks: list[dict[int, bytes]] = []
    for size in (3, 10):
        batches = TrainBatches(part(), batch_size=size, **options).epochs(1)
        looks.append(
            {int(i): x.tobytes() for b in batches for i, x in zip(b["index"], b["image"].numpy(), strict=True)}
        )
    assert looks[0] == looks[1]


@pytest.mark.parametrize("shares", [[(0, 1, 2), (1, 2, 2)], [(0, 2, 5), (2, 3, 5), (3, 5, 5)]])
def test_the_shares_of_a_step_are_together_the_step(shares: list[tuple[int, int, int]]) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seed": 3, "augment": KINDS}
    whole, own = TrainBatches(part(), **options), [TrainBatches(part(), **options, share=Share(*s)) for s in shares]
    for step in range(6):  # steps of 4, 4 and 2 examples: fewer than replicas
        expected, batches = whole.at(step), [each.at(step) for each in own]
        assert [batch.pop("examples") for batch in batches] == [len(expected["index"])] * len(own)
        equal({name: np.concatenate([batch[name] for batch in batches]) for name in expected}, expected)
    assert [len(batch["index"]) for batch in own[-1].between(0, 3)] == [
        stop - first for first, stop in (Share(*shares[-1]).bounds(count) for count in (4, 4, 2))
    ]


def test_a_share_reads_only_its_own_examples_and_may_have_none() -> None:
    read: list[int] = []

    class Counted:
        shape, dtype = (4, 4, 4, 1), np.dtype(np.uint8)

        def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
            read.extend(numbers.tolist())
            return np.zeros((len(numbers), 4, 4, 1), np.uint8)

    few = Part(Counted(), np.zeros(4, np.int64), np.arange(4))
    batches = TrainBatches(few, batch_size=2, augment=KINDS, share=Share(1, 2, 4))
    for step in range(2):
        batch = batches.at(step)
        assert (batch["image"].shape, batch["label"].shape, batch["seeds"].shape) == ((0, 4, 4, 1), (0,), (0, 2))
        assert batch["examples"] == 2
    assert read == []


def test_seeds_change_the_order_and_the_augmentation() -> None:
    one, two = (TrainBatches(part(), batch_size=10, seed=seed).at(0) for seed in (0, 1))
    assert one["index"].tolist() != two["index"].tolist()
    assert not set(map(tuple, one["seeds"].tolist())) & set(map(tuple, two["seeds"].tolist()))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_bytes_and_of_floats_are_normalised_alike(dtype: Any) -> None:
    normalise = Normalise(mean=(0.25,), std=(2.0,))
    batch = next(iter(EvalBatches(part(dtype=dtype), batch_size=10, normalise=normalise)))
    expected = (part().images[100:] / 255 - 0.25) / 2
    np.testing.assert_allclose(batch["image"], expected, atol=2e-7, rtol=0)


def test_normalisation_is_by_channel() -> None:
    images = np.full((2, 4, 4, 3), 255, np.uint8)
    normalise = Normalise(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    colour = Part(images, np.zeros(2, np.int64), np.arange(2))
    for batch in (
        TrainBatches(colour, batch_size=2, normalise=normalise).at(0),
        *EvalBatches(colour, batch_size=2, normalise=normalise),
    ):
        np.testing.assert_array_equal(batch["image"], np.broadcast_to([1.0, 1.0, 0.0], (2, 4, 4, 3)))


def test_images_are_prepared_by_one_function_however_many_batches_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow warns of functions that are made again and again, and each takes time to trace."""
    traced: list[Any] = []
    monkeypatch.setattr(data_batches, "augment", lambda images, seeds, kinds, **fill: traced.append(kinds) or images)
    for mean in ((0.123,), [0.123]):
        normalise = Normalise(mean=mean, std=(3.0,))  # type: ignore[arg-type]
        next(iter(EvalBatches(part(), batch_size=4, normalise=normalise)))
    assert traced == [()]


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_evaluation_goes_through_its_part_in_order_as_often_as_asked(size: int) -> None:
    batches = EvalBatches(part(), batch_size=size)
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches) == -(-10 // size)
        assert np.concatenate([batch["index"] for batch in found]).tolist() == list(range(100, 110))


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size={size}: expected 1 to 10, the number of training examples"):
        TrainBatches(part(), batch_size=size)


@pytest.mark.parametrize("size", [0, -1])
def test_an_evaluation_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size={size}: expected at least 1"):
        EvalBatches(part(), batch_size=size)


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    def alive() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]

    batches = TrainBatches(part(), batch_size=1).between(0, 1000)
    next(batches)
    assert len(alive()) == 1
    batches.close()  # type: ignore[attr-defined]
    assert alive() == []


def test_an_error_while_reading_reaches_the_reader() -> None:
    batches = TrainBatches(part(), batch_size=2)
    batches.part.labels.resize((1,), refcheck=False)
    with pytest.raises(IndexError):
        list(batches.between(0, 3))
