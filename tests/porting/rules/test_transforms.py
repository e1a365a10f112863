"""Transforms: each as numpy does it, and what is inferred from shapes is what comes out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.porting.rules import transforms
from engine.porting.rules.transforms import Spec, Target

ANY = Target((1,))


def run(text: str, *arrays: np.ndarray, target: Target = ANY) -> np.ndarray:
    """The result, after a check that it is what was inferred."""
    steps = [transforms.parse_transform(part) for part in text.split("|")]
    inferred = transforms.infer_spec([Spec(array.shape, array.dtype) for array in arrays], steps, target)
    assert inferred.spec is not None, inferred.problem
    result = transforms.apply_transforms(arrays, steps, target)
    assert inferred.spec == Spec(result.shape, result.dtype)
    return result


def problem(text: str, *shapes: tuple[int, ...], target: Target = ANY, dtype: Any = np.float32) -> str:
    steps = [transforms.parse_transform(part) for part in text.split("|")]
    inferred = transforms.infer_spec([Spec(shape, np.dtype(dtype)) for shape in shapes], steps, target)
    assert inferred.spec is None
    return inferred.problem


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


A = array(2, 3, 4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("transpose", A.T),
        ("transpose()", A.T),
        ("transpose(2, 0, 1)", A.transpose(2, 0, 1)),
        ("reshape(6, 4)", A.reshape(6, 4)),
        ("reshape(d0, -1)", A.reshape(2, 12)),
        ("reshape(-1, d2)", A.reshape(6, 4)),
        ("reshape(d0 * d1, d2)", A.reshape(6, 4)),
        ("reshape(2 * d0, 6)", A.reshape(4, 6)),
        ("reshape(-1)", A.reshape(-1)),
        ("split(2, 2, 1)", A[:, :, 2:]),
        ("split(-2, 3, 0)", A[:, :1]),
        ("slice(2, 1, 4)", A[:, :, 1:]),
        ("slice(-2, 0, 2)", A[:, :2]),
        ("slice(1, -1, end)", A[:, 2:]),
        ("slice(2, 1, -d0)", A[:, :, 1:2]),
        ("add(1.0)", A + 1),
        ("add(-2.5e-1)", A - 0.25),
        ("multiply(2.5)", A * 2.5),
        ("reverse(2)", A[:, :, ::-1]),
        ("reverse(-3)", A[::-1]),
        ("slice(2, background, end)", A),
        ("add(1, 2, 4, 1)", A + np.eye(4, dtype=A.dtype)[1]),
        ("lstm_gates", A[:, :, [0, 2, 1, 3]]),
        ("slice(2, 0, 3) | gru_gates", A[:, :, [1, 0, 2]]),
        ("cast(float64)", A.astype(np.float64)),
        ("cast(bfloat16)", A.astype(ml_dtypes.bfloat16)),
        ("cast(int32)", A.astype(np.int32)),
        ("transpose(1, 0, 2) | reshape(d0, -1) | split(0, 3, 2)", A.transpose(1, 0, 2).reshape(3, 8)[2:]),
    ],
)
def test_a_transform_is_what_numpy_does(text: str, wanted: np.ndarray) -> None:
    result = run(text, A)
    assert result.dtype == wanted.dtype
    np.testing.assert_array_equal(result, wanted)


def test_gates_of_several_units_stay_together() -> None:
    np.testing.assert_array_equal(run("lstm_gates", np.arange(8)), [0, 1, 4, 5, 2, 3, 6, 7])
    np.testing.assert_array_equal(run("gru_gates", np.arange(6)), [2, 3, 0, 1, 4, 5])


def test_what_a_slot_follows_has_no_constants() -> None:
    steps = [transforms.parse_transform(text) for text in ("lstm_gates", "add(1.0, 0, 4, 1)")]
    assert [str(step) for step in transforms.drop_constants(steps)] == ["lstm_gates"]


def test_slice_knows_the_target() -> None:
    np.testing.assert_array_equal(run("slice(2, 0, t0)", A, target=Target((3,))), A[:, :, :3])
    np.testing.assert_array_equal(run("slice(2, -t0, end)", A, target=Target((3,))), A[:, :, 1:])


def test_reshape_knows_the_target() -> None:
    np.testing.assert_array_equal(run("reshape(t1, t0)", A, target=Target((4, 6))), A.reshape(6, 4))


@pytest.mark.parametrize(("text", "shape"), [("squeeze", (3,)), ("squeeze(0)", (3, 1)), ("squeeze(0, -1)", (3,))])
def test_squeeze_drops_axes_of_length_one(text: str, shape: tuple[int, ...]) -> None:
    assert run(text, array(1, 3, 1)).shape == shape


def test_concat_joins_what_was_transformed_one_by_one() -> None:
    one, two = array(2, 3), array(5, 3) + 100
    np.testing.assert_array_equal(run("transpose | concat(1)", one, two), np.concatenate([one.T, two.T], axis=1))
    np.testing.assert_array_equal(run("concat(-2) | transpose", one, two), np.concatenate([one, two]).T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_resized_grid_is_float32_or_float64(dtype: Any) -> None:
    result = run("resize_grid", array(1, 10, 2, dtype=dtype), target=Target((1, 17, 2), (4, 4)))
    assert result.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_array_equal(result[0, 0], [0, 1])


def test_a_grid_of_the_same_size_is_left_alone() -> None:
    embedding = array(1, 10, 2, dtype=np.float16)
    assert run("resize_grid", embedding, target=Target((1, 10, 2), (3, 3))) is embedding


def test_without_the_models_grid_a_square_is_taken() -> None:
    assert run("resize_grid", array(1, 10, 2), target=Target((1, 5, 2))).shape == (1, 5, 2)


def test_the_files_grid_can_be_said() -> None:
    assert run("resize_grid(2, 5)", array(1, 11, 2), target=Target((1, 10, 2), (3, 3))).shape == (1, 10, 2)


def test_a_constant_grid_stays_constant_at_any_size() -> None:
    for new in ((1, 1), (2, 7), (9, 9)):
        target = Target((1, new[0] * new[1], 1), new)
        np.testing.assert_allclose(run("resize_grid", np.full((1, 16, 1), 3.25), target=target), 3.25, rtol=1e-14)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
)
@settings(deadline=None, max_examples=300)
def test_what_is_inferred_is_what_comes_out(shape: tuple[int, ...], data: st.DataObject) -> None:
    """For any chain of transforms: either a problem is told before, or the result has that shape and dtype."""
    rank = st.integers(-2, 4)
    one = st.one_of(
        st.permutations(range(len(shape))).map(lambda axes: f"transpose({', '.join(map(str, axes))})"),
        st.just("transpose"),
        st.just("squeeze"),
        st.tuples(rank, st.sampled_from([1, 2, 3, 4])).map(lambda a: f"split({a[0]}, {a[1]}, {a[1] - 1})"),
        st.lists(st.sampled_from(["-1", "d0", "d1", "2", "3", "4", "t0", "d0*d1"]), min_size=1, max_size=3)
        .filter(lambda dims: dims.count("-1") < 2)
        .map(lambda dims: f"reshape({', '.join(dims)})"),
        st.sampled_from(["cast(float16)", "cast(float64)", "lstm_gates", "gru_gates", "add(1.5)", "add(1, 0, 2, 1)"]),
        st.tuples(rank, st.sampled_from(["0", "1", "-2", "d0"]), st.sampled_from(["2", "-1", "end", "t1"])).map(
            lambda a: f"slice({a[0]}, {a[1]}, {a[2]})"
        ),
        rank.map(lambda axis: f"concat({axis})"),
        rank.map(lambda axis: f"squeeze({axis})"),
    )
    steps = [transforms.parse_transform(text) for text in data.draw(st.lists(one, max_size=4))]
    arrays = [array(*shape)] * data.draw(st.integers(1, 2))
    target = Target((2, 3))
    inferred = transforms.infer_spec([Spec(a.shape, a.dtype) for a in arrays], steps, target)
    if inferred.spec is None:
        assert inferred.problem
        return
    result = transforms.apply_transforms(arrays, steps, target)
    assert inferred.spec == Spec(result.shape, result.dtype)


# --- what cannot be applied to ---


@pytest.mark.parametrize(
    ("text", "shapes", "said"),
    [
        ("transpose(1, 0)", [(2, 3, 4)], "`transpose(1, 0)` cannot be applied to [2, 3, 4]: expected 2 axes"),
        ("reshape(5, -1)", [(2, 3)], "6 elements are not divisible by 5"),
        ("reshape(2, 2)", [(2, 3)], "[2, 2] has 4 elements, not 6"),
        ("reshape(0, -1)", [(2, 3)], "6 elements are not divisible by 0"),
        ("reshape(d5)", [(2, 3)], "there is no d5 in [2, 3]"),
        ("reshape(t4)", [(2, 3)], "there is no t4 in [1]"),
        ("squeeze(0)", [(2, 3)], "axis 0 has length 2, not 1"),
        ("squeeze(7)", [(2, 3)], "there is no axis 7"),
        ("split(0, 3, 0)", [(4, 3)], "axis 0 has length 4, which is not divisible by 3"),
        ("split(2, 3, 0)", [(4, 3)], "there is no axis 2"),
        ("slice(0, 2, 5)", [(4, 3)], "axis 0 has length 4, which has no entries from 2 up to 5"),
        ("slice(0, 2, -3)", [(4, 3)], "axis 0 has length 4, which has no entries from 2 up to 1"),
        ("slice(0, 0, t2)", [(4, 3)], "there is no t2 in [1]"),
        ("lstm_gates", [(4, 6)], "axis 1 has length 6, which is not divisible by 4"),
        ("gru_gates", [(4,)], "axis 0 has length 4, which is not divisible by 3"),
        ("cast(int32) | add(1.0)", [(4,)], "expected a floating-point dtype, not int32"),
        ("cast(int32) | multiply(2.0)", [(4,)], "expected a floating-point dtype, not int32"),
        ("reverse(2)", [(4, 3)], "there is no axis 2"),
        ("add(1.0, 0, 3, 1)", [(4,)], "axis 0 has length 4, which is not divisible by 3"),
        ("concat(0)", [(4, 3), (4, 2)], "shapes may differ only along axis 0"),
        ("concat(0)", [(4, 3), (4,)], "shapes may differ only along axis 0"),
        ("concat(9)", [(4, 3), (4, 3)], "there is no axis 9"),
        ("transpose", [(4, 3), (4, 3)], "2 sources remain; join them with `concat(axis)`"),
        ("resize_grid", [(10, 2)], "expected a position embedding [1, tokens, width]"),
    ],
)
def test_a_shape_that_does_not_suit_is_told(text: str, shapes: list[tuple[int, ...]], said: str) -> None:
    assert said in problem(text, *shapes)


def test_a_grid_that_cannot_be_told_is_not_guessed() -> None:
    assert "the file's 13 tokens are not a class token and a square grid" in problem(
        "resize_grid", (1, 13, 2), target=Target((1, 10, 2), (3, 3))
    )
    assert "the file's 9 tokens are not a class token and" in problem(
        "resize_grid", (1, 9, 2), target=Target((1, 5, 2), (2, 2))
    )
    assert "are not a class token and a 2x5 grid" in problem(
        "resize_grid(2, 5)", (1, 10, 2), target=Target((1, 5, 2), (2, 2))
    )
    assert "the model's 8 tokens do not form a square grid" in problem(
        "resize_grid", (1, 9, 2), target=Target((1, 8, 2))
    )


@pytest.mark.parametrize(
    ("classes", "wanted", "first"),
    [(1001, 1000, 1), (1001, 1001, 0), (1000, 1000, 0), (1001, 7, 0), (6, 5, 0), (7, 7, 0)],
)
def test_the_background_is_left_out_only_of_imagenets_classes(classes: int, wanted: int, first: int) -> None:
    step, target = transforms.parse_transform("slice(-1, background, end)"), Target((2, wanted))
    array = np.arange(classes, dtype=np.float32)
    np.testing.assert_array_equal(transforms.apply_transforms([array], [step], target), array[first:])


def test_slots_follow_no_weight_that_is_multiplied() -> None:
    steps = [transforms.parse_transform(text) for text in ("transpose", "multiply(2)")]
    assert transforms.have_slots(steps[:1])
    assert not transforms.have_slots(steps)


def test_concat_of_different_types_asks_for_a_cast() -> None:
    steps = [transforms.parse_transform("concat(0)")]
    inferred = transforms.infer_spec(
        [Spec((2,), np.dtype(np.float32)), Spec((2,), np.dtype(np.float16))], steps, Target((4,))
    )
    assert "dtypes differ (float32, float16); cast first" in inferred.problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("transpos(1, 0)", "unknown transform `transpos`; expected one of transpose, .*; nearest: transpose"),
        ("transpose(1, 0", "is not a valid transform"),
        ("transpose(1 0)", "expected integers"),
        ("transpose(0, 2)", "each axis from 0 to 1 once"),
        ("transpose(0, 0)", "each axis from 0 to 1 once"),
        ("reshape", "takes 1 to 32 dims"),
        ("reshape(-1, -1)", "only one dim can be -1"),
        ("reshape(width)", "`width` is not a valid dim"),
        ("reshape(-2)", "`-2` is not a valid dim"),
        ("split(0, 3)", "`split` takes 3 arguments, not 2"),
        ("split(0, 3, 3)", "there is no part 3 of 3"),
        ("split(0, 0, 0)", "there is no part 0 of 0"),
        ("slice(0, 1)", r"expected slice\(axis, from, to\)"),
        ("slice(0, 1, all)", r"expected slice\(axis, from, to\)"),
        ("multiply", r"expected multiply\(number\)"),
        ("multiply(0)", "with a number other than 0"),
        ("multiply(2, 3)", r"expected multiply\(number\)"),
        ("reverse", "`reverse` takes 1 argument, not 0"),
        ("reverse(all)", "expected integers"),
        ("add", r"expected add\(number\) or add\(number, axis, parts, i\)"),
        ("add(one)", r"expected add\(number\) or"),
        ("add(1, 0, 4, 4)", "there is no part 4 of 4"),
        ("lstm_gates(1.0)", "expected no arguments"),
        ("concat", "`concat` takes 1 argument, not 0"),
        ("cast(float33)", "expected one of float16, "),
        ("cast", "expected one of"),
        ("resize_grid(3)", "takes 0 or 2 arguments"),
        ("resize_grid(0, 3)", "rows and columns must be at least 1"),
        ("", "is not a valid transform"),
    ],
)
def test_a_transform_that_says_nothing_sensible_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        transforms.parse_transform(text)
