"""Loading our own weights: all or nothing, and both sides named when it does not fit."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from engine import files
from engine.models import build_model
from engine.porting import Ledger, PortError, load
from engine.selection.variables import name_variables


def vit(seed: int = 0, *, outputs: int = 3, dtype: Any = tf.float32, options: str = "depth=1") -> Any:
    return build_model(f"vit:mini,{options}", image_shape=(8, 8, 1), outputs=outputs, seed=seed, dtype=dtype).network


def values(model: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(model)}


def targets(ledger: Ledger) -> list[str]:
    return [entry.target for entry in ledger.loaded]


def saved(folder: pathlib.Path, arrays: dict[str, Any]) -> pathlib.Path:
    path = folder / "weights.npz"
    files.write_npz(path, arrays.items())
    return path


def refused(model: Any, path: pathlib.Path) -> str:
    """The message; and not a bit of the model has changed."""
    before = values(model)
    with pytest.raises(PortError) as caught:
        load(model, path)
    after = values(model)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- what fits ---


@pytest.mark.parametrize("name", ["vit:mini,depth=1,layer_scale", "cnn:mini"])
def test_every_variable_comes_back_bit_for_bit(tmp_path: pathlib.Path, name: str) -> None:
    one, two = (build_model(name, image_shape=(8, 8, 1), outputs=3, seed=seed).network for seed in (1, 2))
    ledger = load(two, saved(tmp_path, values(one)))
    assert targets(ledger) == list(values(one))
    assert ledger.fresh == {}
    for path, value in values(two).items():
        assert value.tobytes() == values(one)[path].tobytes()


def test_the_head_may_be_missing(tmp_path: pathlib.Path) -> None:
    one, two = vit(1), vit(2)
    before = values(two)
    ledger = load(two, saved(tmp_path, {p: v for p, v in values(one).items() if not p.startswith("head/")}))
    assert ledger.fresh == {"head/kernel": "not in the file", "head/bias": "not in the file"}
    assert set(targets(ledger)) == set(before) - set(ledger.fresh)
    for path, value in values(two).items():
        np.testing.assert_array_equal(value, before[path] if path in ledger.fresh else values(one)[path])


def test_the_head_may_have_other_classes(tmp_path: pathlib.Path) -> None:
    two = vit(2, outputs=5)
    before = values(two)
    ledger = load(two, saved(tmp_path, values(vit(1, outputs=3))))
    assert ledger.fresh == {
        "head/kernel": "[96, 3] in the file, [96, 5] in the model",
        "head/bias": "[3] in the file, [5] in the model",
    }
    np.testing.assert_array_equal(two.head.kernel, before["head/kernel"])


def test_optimizer_slots_are_left_alone(tmp_path: pathlib.Path) -> None:
    one = values(vit(1))
    extra = {"optimizer/head/kernel/m": np.zeros((96, 3)), "optimizer/head/kernel/t": np.int64(4)}
    ledger = load(vit(2), saved(tmp_path, one | extra))
    assert targets(ledger) == list(one)
    assert {entry.name for entry in ledger.skipped} == set(extra)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("target", [tf.float32, tf.float64])
def test_floats_of_other_sizes_are_cast(tmp_path: pathlib.Path, dtype: Any, target: Any) -> None:
    arrays = {path: value.astype(dtype) for path, value in values(vit(1)).items()}
    two = vit(2, dtype=target)
    load(two, saved(tmp_path, arrays))
    for path, value in values(two).items():
        assert value.dtype == target.as_numpy_dtype
        np.testing.assert_array_equal(value, arrays[path].astype(target.as_numpy_dtype))


def test_bfloat16_variables_take_bfloat16_bits(tmp_path: pathlib.Path) -> None:
    array = np.array([1.5, -0.1, 3e38], ml_dtypes.bfloat16)
    model = {"w": tf.Variable(np.zeros(3, ml_dtypes.bfloat16))}
    load(model, saved(tmp_path, {"w": array}))
    assert model["w"].numpy().tobytes() == array.tobytes()


def test_integers_load_into_integers_of_the_same_type(tmp_path: pathlib.Path) -> None:
    model = {"count": tf.Variable(np.int64(0), trainable=False), "w": tf.Variable([0.0])}
    load(model, saved(tmp_path, {"count": np.int64(7), "w": np.array([2.0])}))
    assert (int(model["count"]), float(model["w"][0])) == (7, 2.0)


def test_a_shared_variable_is_found_under_its_other_name(tmp_path: pathlib.Path) -> None:
    shared = tf.Variable([0.0, 0.0])
    model = {"encoder/kernel": shared, "decoder/kernel": shared}
    ledger = load(model, saved(tmp_path, {"decoder/kernel": np.array([1.0, 2.0], np.float32)}))
    assert targets(ledger) == ["encoder/kernel"]
    np.testing.assert_array_equal(shared, [1.0, 2.0])


def test_a_keras_model_takes_its_weights_by_layer_path(tmp_path: pathlib.Path) -> None:
    def model() -> Any:
        layers = keras.layers
        return keras.Sequential([keras.Input([3]), layers.Dense(4, name="a"), layers.BatchNormalization(name="n")])

    one, two = model(), model()
    load(two, saved(tmp_path, values(one)))
    np.testing.assert_array_equal(two.get_layer("a").kernel, one.get_layer("a").kernel)
    assert set(values(one)) == {"a/kernel", "a/bias", "n/gamma", "n/beta", "n/moving_mean", "n/moving_variance"}


# --- what does not ---


def test_a_missing_variable_and_an_unused_array_are_both_listed(tmp_path: pathlib.Path) -> None:
    arrays = values(vit(1))
    arrays["patch/weights"] = arrays.pop("patch/kernel")
    message = refused(vit(2), saved(tmp_path, arrays))
    assert "in the model, not in the file (1):\n    patch/kernel [16, 96]" in message
    assert "in the file, not in the model (1):\n    patch/weights" in message


def test_another_shape_is_listed_with_both_shapes(tmp_path: pathlib.Path) -> None:
    arrays = values(vit(1))
    arrays["patch/kernel"] = arrays["patch/kernel"].T
    message = refused(vit(2), saved(tmp_path, arrays))
    assert "of another shape or type (1):\n    patch/kernel: [96, 16] in the file, [16, 96] in the model" in message


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.bool_, np.complex64, "S4"])
def test_what_is_no_float_does_not_load_into_a_float(tmp_path: pathlib.Path, dtype: Any) -> None:
    arrays: dict[str, Any] = values(vit(1))
    arrays["norm/gamma"] = np.ones(96).astype(dtype)
    message = refused(vit(2), saved(tmp_path, arrays))
    assert f"norm/gamma: {np.dtype(dtype).name} in the file, float32 in the model" in message


def test_a_float_does_not_load_into_an_integer(tmp_path: pathlib.Path) -> None:
    model = {"count": tf.Variable(np.int64(3), trainable=False)}
    for array, name in ((np.float64(7), "float64"), (np.int32(7), "int32")):
        assert f"count: {name} in the file, int64 in the model" in refused(model, saved(tmp_path, {"count": array}))


def test_a_head_of_the_right_shape_and_the_wrong_type_is_refused(tmp_path: pathlib.Path) -> None:
    arrays = values(vit(1)) | {"head/bias": np.zeros(3, np.int32)}
    assert "head/bias: int32 in the file" in refused(vit(2), saved(tmp_path, arrays))


def test_an_unknown_array_under_the_head_is_refused(tmp_path: pathlib.Path) -> None:
    message = refused(vit(2), saved(tmp_path, values(vit(1)) | {"head/scale": np.ones(3)}))
    assert "in the file, not in the model (1):\n    head/scale" in message


def test_a_long_list_is_cut_and_counted(tmp_path: pathlib.Path) -> None:
    message = refused(vit(2, options="depth=2"), saved(tmp_path, values(vit(1))))
    assert "in the model, not in the file (16):" in message
    assert message.count("\n    blocks/1/") == 8
    assert message.endswith("... and 8 more")


def test_another_model_lists_both_sides(tmp_path: pathlib.Path) -> None:
    cnn = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3).network
    message = refused(vit(2), saved(tmp_path, values(cnn)))
    assert "in the model, not in the file" in message
    assert "in the file, not in the model" in message


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_what_is_no_weights_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    assert "not an .npz file" in refused(vit(), path)


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    assert "there is no such file" in refused(vit(), tmp_path / "absent.npz")


def test_pickled_objects_are_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "weights.npz", w=np.array([object()]))
    assert "pickled Python objects" in refused(vit(), tmp_path / "weights.npz")


def test_damage_in_a_late_tensor_leaves_the_earlier_ones_untouched(tmp_path: pathlib.Path) -> None:
    """In the middle of a large one: small tensors are already checked when the file is opened."""
    arrays = values(vit(1))
    path = saved(tmp_path, arrays)
    content = bytearray(path.read_bytes())
    late = arrays["blocks/0/mlp/down/kernel"].tobytes()
    content[content.index(late) + len(late) // 2] ^= 4
    path.write_bytes(bytes(content))
    assert "blocks/0/mlp/down/kernel: damaged" in refused(vit(2), path)
