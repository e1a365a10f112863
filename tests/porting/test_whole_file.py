"""Whole weights from a base and a delta, in the base's own format: as code of its own would have written them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from test_layouts import to_augreg, to_hf, to_timm, values, vit

from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.porting.apply_delta import apply_to_checkpoint
from engine import apply_delta, load_weights, select
from engine.errors import InputError
from engine.files import Npz, write_npz
from engine.models import build_model
from engine.porting.readers.safetensors_file import Safetensors
from engine.runs import records
from engine.selection.variables import name_variables
from engine.training import checkpoint

TRAINED = "@head blocks/1/attention/query/kernel blocks/0/mlp/up/bias norm/.*"


def train(network: Any, path: pathlib.Path, chosen: str = TRAINED) -> dict[str, np.ndarray]:
    """Changes what a filter names, writes the delta, and returns all values."""
    selection = select(network, chosen)
    rng = np.random.default_rng(5)
    for entry in selection.trained:
        entry.variable.assign(rng.normal(0, 0.3, entry.shape).astype(np.float32))
    records.write_trained(path, selection.variables, [selection], class_names=list("abcde"))
    return values(network)


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        write_npz(path, arrays.items())
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {"format": "pt"})


LAYOUTS = {to_hf: ".safetensors", to_timm: ".safetensors", to_augreg: ".npz", dict: ".npz"}
QUICK = [(to_timm, 7), (dict, None)]
CASES = [
    pytest.param(layout, head, marks=[] if (layout, head) in QUICK else pytest.mark.slow)
    for layout in LAYOUTS
    for head in (5, 7, None)
]


@pytest.mark.parametrize(("layout", "head"), CASES)
def test_the_file_is_as_if_written_independently(tmp_path: pathlib.Path, layout: Any, head: int | None) -> None:
    suffix = LAYOUTS[layout]
    base, delta, out = (tmp_path / name for name in (f"base{suffix}", "trained.npz", f"out{suffix}"))
    original = layout(values(vit(seed=1, outputs=head or 5)))
    body = layout(values(vit(seed=1)))
    if head is None:  # a file of features alone
        original = {n: a for n, a in original.items() if not n.startswith(("head", "classifier"))}
    write(base, original)
    network = vit(seed=2)
    load_weights(network, base)
    now = train(network, delta)
    done = apply_delta(base, delta, out)
    wanted = layout(now)
    with opened(out) as found:
        assert set(found.names()) == set(wanted)
        assert found.names()[: len(original)] == list_names(base)
        for name, array in wanted.items():
            assert found.dtype(name) == array.dtype
            assert found.read(name).tobytes() == np.ascontiguousarray(array).tobytes(), name
    assert set(done.changed) == {n for n, a in wanted.items() if n not in body or not np.array_equal(a, body[n])}
    again = vit(seed=3)
    load_weights(again, out)
    assert all(value.tobytes() == now[path].tobytes() for path, value in values(again).items())


def opened(path: pathlib.Path) -> Any:
    return Npz(path) if path.suffix == ".npz" else Safetensors(path)


def list_names(path: pathlib.Path) -> list[str]:
    with opened(path) as found:
        return list(found.names())


@pytest.mark.parametrize("dtype", [np.float16, pytest.param(ml_dtypes.bfloat16, marks=pytest.mark.slow)])
def test_the_dtype_of_the_base_stays_and_rounding_is_told(tmp_path: pathlib.Path, dtype: Any) -> None:
    base, delta, out = (tmp_path / name for name in ("base.safetensors", "trained.npz", "out.safetensors"))
    write(base, {name: array.astype(dtype) for name, array in to_timm(values(vit(seed=1))).items()})
    network = vit(seed=2)
    load_weights(network, base)
    now = train(network, delta)
    done = apply_delta(base, delta, out)
    assert "head/kernel" in done.rounded
    assert "blocks/0/norm1/gamma" not in done.rounded
    header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    found = load_file(out)
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    assert found["head.weight"].tobytes() == np.ascontiguousarray(now["head/kernel"].T.astype(dtype)).tobytes()
    network.head.kernel.assign(tf.fill(network.head.kernel.shape, 1e6))
    records.write_trained(delta, name_variables(network), [select(network, TRAINED)])
    if dtype == np.float16:
        before = out.read_bytes()
        with pytest.raises(InputError, match="do not fit float16"):
            apply_delta(base, delta, out)
        assert out.read_bytes() == before


def test_a_checkpoint_of_a_run_loses_what_belongs_to_other_values(tmp_path: pathlib.Path) -> None:
    network = vit(seed=1)
    arrays = {"optimizer/head/bias/m": np.zeros(5, np.float32), "ema/head/bias": np.zeros(5, np.float32)}
    base = checkpoint.save(
        tmp_path, 3, variables=name_variables(network), arrays=arrays.items, state={}, class_names=list("vwxyz")
    )
    now = train(network, tmp_path / "trained.npz")
    done = apply_delta(base, [tmp_path / "trained.npz"], tmp_path / "out.npz")
    assert set(done.dropped) == set(arrays)
    with Npz(tmp_path / "out.npz") as found:
        assert found.names() == list(now)
        assert json.loads(found.text("class_names.json")) == list("abcde")
        assert "state.json" not in found.others()


def test_a_delta_on_a_delta_and_a_wrong_base(tmp_path: pathlib.Path) -> None:
    base, one, two = (tmp_path / name for name in ("base.safetensors", "one.npz", "two.npz"))
    network = vit(seed=1)
    write(base, to_timm(values(network)))
    train(network, one, "norm/.*")
    now = train(network, two, "@head")
    done = apply_delta(base, f"{one}+{two}", tmp_path / "out.safetensors")
    assert len(done.texts) == 3
    assert load_file(tmp_path / "out.safetensors")["norm.weight"].tobytes() == now["norm/gamma"].tobytes()
    apply_delta(f"{base}+{one}", two, tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    with pytest.raises(InputError, match="it belongs to other weights"):
        apply_delta(base, [two, one], tmp_path / "no.safetensors")
    with pytest.raises(InputError, match="it belongs to other weights"):
        apply_delta(base, two, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()
    apply_delta(base, two, tmp_path / "forced.safetensors", force_base=True)
    assert load_file(tmp_path / "forced.safetensors")["norm.weight"].tobytes() != now["norm/gamma"].tobytes()


def test_what_cannot_be_written_is_told(tmp_path: pathlib.Path) -> None:
    base, delta = tmp_path / "base.safetensors", tmp_path / "delta.npz"
    network = vit(seed=1)
    write(base, to_timm(values(network)))
    train(network, delta)
    before = base.read_bytes()
    for given, said in [
        ((base, delta, tmp_path / "out.npz"), r"expected a name that ends in \.safetensors"),
        ((base, delta, base), "it is also what is read"),
        ((base, base, tmp_path / "o.safetensors"), "not an .npz file"),
        ((base, tmp_path / "no.npz", tmp_path / "o.safetensors"), "there is no such file"),
        ((tmp_path / "no.npz", delta, tmp_path / "o.npz"), "there is no such file"),
        ((base, delta, tmp_path), "only a regular file is ever replaced"),
        ((base, "auto", tmp_path / "o.safetensors"), "expected a file that a run wrote"),
        (("auto", delta, tmp_path / "o.npz"), "does not hold a run"),
    ]:
        with pytest.raises(InputError, match=said):
            apply_delta(*given)
    assert base.read_bytes() == before
    assert not list(tmp_path.glob("o.*"))


def test_a_checkpoint_of_tensorflow_1_keeps_its_form(tmp_path: pathlib.Path) -> None:
    network = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3, seed=1).network
    rules = tmp_path / "my.rules"
    rules.write_text("(.*)/(\\w+) <- old/\\1/\\2\nskip global_step\n")
    arrays = {f"old/{path}": value for path, value in values(network).items()} | {"global_step": np.int64(7)}
    prefix = str(tmp_path / "model.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )
    now = train(network, tmp_path / "trained.npz", "@head")
    done = apply_to_checkpoint(prefix, [tmp_path / "trained.npz"], tmp_path / "new.ckpt", rules=rules)
    assert set(done.changed) == {"old/head/kernel", "old/head/bias"}
    with open_checkpoint(str(tmp_path / "new.ckpt")) as found:
        assert sorted(found.names()) == sorted(arrays)
        for path, value in now.items():
            assert found.read(f"old/{path}").tobytes() == value.tobytes()
