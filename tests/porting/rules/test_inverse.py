"""Rules backwards: what a chain of transforms made is undone exactly, or it is said which one cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from engine.porting.rules import transforms
from engine.porting.rules.inverse import infer_source_shape, invert_transforms
from engine.porting.rules.transforms import Spec, Target


def chain(*texts: str) -> list[transforms.Transform]:
    return [transforms.parse_transform(text) for text in texts]


def there_and_back(arrays: list[np.ndarray], steps: list[transforms.Transform], target: Target) -> list[np.ndarray]:
    """Runs the steps on other values and takes the result back into ``arrays``."""
    made = transforms.apply_transforms(arrays, steps, target)
    specs = [Spec(array.shape, array.dtype) for array in arrays]
    return invert_transforms(np.array(made), specs, steps, target, read=lambda number: np.zeros_like(arrays[number]))


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ((5,), []),
        ((2, 3), ["transpose"]),
        ((2, 3, 4), ["transpose(1, 2, 0)"]),
        ((2, 3, 4, 5), ["transpose(2, 3, 1, 0)", "reshape(-1, d3)"]),
        ((10,), ["reshape(1, 1, -1)"]),
        ((1, 6, 1), ["squeeze"]),
        ((1, 6, 1), ["squeeze(0)", "transpose", "reshape(2, 3)"]),
        ((3, 8), ["lstm_gates", "transpose"]),
        ((3, 6), ["gru_gates"]),
        ((3, 6), ["reverse(1)", "transpose", "reverse(-1)"]),
        ((3, 6), ["multiply(0.5)"]),
        ((4, 6), ["reshape(2, 2, 6)", "transpose(2, 0, 1)", "reshape(-1)"]),
    ],
)
def test_what_only_moves_elements_is_undone_exactly(shape: tuple[int, ...], texts: list[str]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (back,) = there_and_back([array], chain(*texts), Target(()))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_sources_that_were_joined_are_taken_apart() -> None:
    arrays = [np.arange(n * 3, dtype=np.float32).reshape(3, n) for n in (1, 4, 2)]
    back = there_and_back(arrays, chain("transpose", "concat(0)", "reshape(7, 3, 1)"), Target(()))
    for one, other in zip(arrays, back, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("before", [[], ["transpose"], ["transpose", "reshape(-1)", "reshape(6, 4)"]])
def test_the_rest_of_a_split_tensor_stays(before: list[str]) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    steps = chain(*before, "split(0, 2, 1)", "transpose")
    part = transforms.apply_transforms([whole], steps, Target(()))
    spec = [Spec(whole.shape, whole.dtype)]
    (back,) = invert_transforms(part + 100, spec, steps, Target(()), read=lambda _: whole)
    assert (whole == np.arange(24, dtype=np.float32).reshape(4, 6)).all(), "the source itself was written to"
    np.testing.assert_array_equal(transforms.apply_transforms([back], steps, Target(())), part + 100)
    assert (back != whole).sum() == part.size


@pytest.mark.parametrize("before", [[], ["transpose"], ["lstm_gates"]])
def test_the_rest_of_a_sliced_tensor_stays(before: list[str]) -> None:
    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    steps = chain(*before, "slice(0, 1, t0)", "transpose")
    target = Target((3, 1))
    part = transforms.apply_transforms([whole], steps, target)
    (back,) = invert_transforms(part + 100, [Spec(whole.shape, whole.dtype)], steps, target, read=lambda _: whole)
    assert (whole == np.arange(32, dtype=np.float32).reshape(8, 4)).all(), "the source itself was written to"
    np.testing.assert_array_equal(transforms.apply_transforms([back], steps, target), part + 100)
    assert (back != whole).sum() == part.size


def test_what_was_added_is_subtracted_in_the_sources_type() -> None:
    array = np.array([0.5, 1.5, 2.5, 3.5], np.float32)
    (back,) = there_and_back([array], chain("lstm_gates", "add(1.0, 0, 4, 1)"), Target(()))
    assert back.tolist() == array.tolist()
    assert back.dtype == array.dtype


def test_casts_are_undone_into_the_sources_type() -> None:
    value = np.array([1.5, 2.5], np.float32)
    (back,) = invert_transforms(
        value, [Spec((2,), np.dtype(np.float16))], chain("cast(float32)"), Target(()), read=lambda _: value
    )
    assert back.dtype == np.float16
    assert back.tolist() == [1.5, 2.5]


def test_a_resized_grid_cannot_be_undone_and_one_that_stayed_can() -> None:
    value = np.zeros((1, 5, 8), np.float32)
    target = Target((1, 5, 8), (2, 2))
    steps = chain("resize_grid")
    (same,) = invert_transforms(value, [Spec((1, 5, 8), value.dtype)], steps, target, read=lambda _: value)
    assert same.shape == (1, 5, 8)
    with pytest.raises(ValueError, match="`resize_grid` cannot be inverted"):
        invert_transforms(value, [Spec((1, 17, 8), value.dtype)], steps, target, read=lambda _: value)


def test_transposes_tell_the_shape_of_their_source_and_others_do_not() -> None:
    assert infer_source_shape((2, 3, 4), chain("transpose(1, 2, 0)")) == (4, 2, 3)
    assert infer_source_shape((2, 3), chain("cast(float16)", "transpose")) == (3, 2)
    with pytest.raises(ValueError, match=r"`reshape\(-1\)` does not determine the shape"):
        infer_source_shape((6,), chain("reshape(-1)"))


def test_what_is_folded_is_subtracted_from_its_source_and_zeros_leave_its_bits() -> None:
    source, steps = np.array([1.0, -0.0, 3.0], np.float32), chain("folded")
    assert not transforms.apply_transforms([source], steps, Target((3,))).any()
    bias = np.array([0.5, 0.0, -0.0], np.float32)
    (back,) = invert_transforms(bias, [Spec((3,), source.dtype)], steps, Target((3,)), read=lambda _: source)
    assert back.tobytes() == np.array([0.5, -0.0, 3.0], np.float32).tobytes()
    assert back.dtype == np.float32
