"""Only what changed is shipped, and only to the model that it belongs to."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from engine.errors import InputError
from engine.export.config import ExportConfig
from engine.export.run import export_run, export_savedmodel
from engine.export.update import push_delta, read_variables
from engine.files import Npz, write_npz
from engine.recipes.reopen import open_run

Train = Callable[..., pathlib.Path]


@pytest.fixture(scope="module")
def later(train: Train) -> pathlib.Path:
    """Another run from the same weights, which trained the same variables for longer."""
    return train(steps=3)


def logits(saved: pathlib.Path, images: np.ndarray) -> np.ndarray:
    loaded = tf.saved_model.load(str(saved))
    return loaded.signatures["serving_default"](images=tf.constant(images))["logits"].numpy()


IMAGES = np.random.default_rng(0).random((3, 16, 16, 1), np.float32)


def test_a_pushed_delta_makes_the_model_of_the_other_run(
    exported: pathlib.Path, later: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = push_delta(exported, later / "trained.npz", tmp_path / "updated")
    assert found.paths == ("head/kernel", "head/bias")
    opened = open_run(later)
    expected = opened.network(opened.normalise(IMAGES), training=False).numpy()
    np.testing.assert_allclose(logits(tmp_path / "updated", IMAGES), expected, atol=1e-5)
    assert np.abs(logits(exported, IMAGES) - expected).max() > 1e-4
    record = json.loads((tmp_path / "updated" / "export.json").read_text())
    assert record["pushed"].endswith("trained.npz")


def test_delta_for_writes_what_turns_one_export_into_another_run(
    exported: pathlib.Path, later: pathlib.Path, vit_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = ExportConfig(run=str(later), delta_for=str(exported), out=str(tmp_path / "delta.npz"))
    export_run(config)
    with Npz(tmp_path / "delta.npz") as delta, Npz(later / "trained.npz") as trained:
        for path in ("head/kernel", "head/bias"):
            np.testing.assert_array_equal(delta.read(path), trained.read(path))
    push_delta(exported, tmp_path / "delta.npz", tmp_path / "updated")
    push_delta(exported, later / "trained.npz", tmp_path / "other")
    np.testing.assert_array_equal(logits(tmp_path / "updated", IMAGES), logits(tmp_path / "other", IMAGES))
    with pytest.raises(InputError, match="nothing changed"):
        export_run(ExportConfig(run=str(vit_run), delta_for=str(exported), out=str(tmp_path / "same.npz")))


@pytest.mark.parametrize(
    "case",
    [
        "other base",
        "flipped bit",
        "other classes",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("other seed", "other model", "other variables below")
        ),
    ],
)
def test_a_wrong_base_is_refused(
    case: str,
    exported: pathlib.Path,
    later: pathlib.Path,
    train: Train,
    small_data: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    to, delta = exported, later / "trained.npz"
    if case == "other seed":
        delta = train(seed=1) / "trained.npz"
    elif case == "other base":
        with Npz(delta) as npz:
            arrays, base = {n: npz.read(n) for n in npz.names()}, json.loads(npz.text("base.json"))
        delta = tmp_path / "other.npz"
        write_npz(delta, arrays.items(), texts={"base.json": json.dumps(base | {"sha256": "0" * 64})})
    elif case == "other model":
        delta = train(model="cnn:mini") / "trained.npz"
    elif case == "other variables below":  # trained on top of another delta, which the export does not have
        whole = train(train="blocks/.*")
        base = sorted((whole / "checkpoints").glob("step-*.npz"))[-1]
        delta = train(weights=str(base)) / "trained.npz"
    elif case == "flipped bit":
        to = tmp_path / "flipped"
        flip_a_frozen_bit(exported, to)
    elif case == "other classes":
        with Npz(delta) as npz:
            arrays, texts = {n: npz.read(n) for n in npz.names()}, {n: npz.text(n) for n in npz.others()}
        delta, to = tmp_path / "named.npz", tmp_path / "named"
        write_npz(delta, arrays.items(), texts=texts | {"class_names.json": '["b", "a", "c"]'})
        shutil.copytree(exported, to)
        record = json.loads((to / "export.json").read_text()) | {"data_names": ["a", "b", "c"]}
        (to / "export.json").write_text(json.dumps(record))
    messages = {
        "other base": "it belongs to other weights",
        "other seed": "it belongs to other weights",
        "other model": r"head/kernel is float32 \[64, 3\]|no such variable",
        "other variables below": "it belongs to other weights",
        "flipped bit": r"differs? \(1\): patch/kernel: other values",
        "other classes": "its classes are b, a and c",
    }
    with pytest.raises(InputError, match=messages[case]):
        push_delta(to, delta, tmp_path / "updated")
    assert not (tmp_path / "updated").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def flip_a_frozen_bit(exported: pathlib.Path, out: pathlib.Path) -> None:
    shutil.copytree(exported, out)
    prefix = str(exported / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    values = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    key = next(key for key in values if "patch" in key and "kernel" in key)
    values[key].view(np.uint32).flat[0] ^= 1
    keys = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(out / "variables" / "variables"),
        tensor_names=keys,
        shape_and_slices=[""] * len(keys),
        tensors=[tf.constant(values[key]) for key in keys],
    )
    assert len(read_variables(out, name="to")) == len(read_variables(exported, name="to"))


@pytest.mark.parametrize("kind", ["not an export", "keras", "damaged record", "no base", "existing out", "empty delta"])
def test_bad_input_is_refused(kind: str, exported: pathlib.Path, later: pathlib.Path, tmp_path: pathlib.Path) -> None:
    to, delta, out = exported, later / "trained.npz", tmp_path / "updated"
    record = json.loads((exported / "export.json").read_text())
    if kind in ("not an export", "keras", "damaged record"):
        to = tmp_path / "made"
        to.mkdir()
        texts = {"keras": json.dumps(record | {"kind": "keras"}), "damaged record": "{"}
        if kind in texts:
            (to / "export.json").write_text(texts[kind])
    elif kind == "existing out":
        out.mkdir()
    else:
        delta = tmp_path / "delta.npz"
        arrays = {} if kind == "empty delta" else {"head/bias": np.zeros(3, np.float32)}
        write_npz(delta, arrays.items())
    expected = {
        "not an export": "it is not an export",
        "keras": "cannot be updated",
        "damaged record": "damaged",
        "no base": "does not say which weights it belongs to",
        "existing out": "it exists",
        "empty delta": "holds no variable",
    }
    with pytest.raises(InputError, match=expected[kind]):
        push_delta(to, delta, out)


@pytest.mark.slow
def test_a_head_of_vit_s_16_takes_at_most_20_kb(train: Train, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=rng.integers(0, 255, [20, 32, 32, 3], np.uint8),
        train_labels=np.arange(20) % 10,
        test_images=rng.integers(0, 255, [10, 32, 32, 3], np.uint8),
        test_labels=np.arange(10),
    )
    runs = [train(model="vit:S/16", data=f"npz:{tmp_path / 'data.npz'}", steps=n, batch_size=10) for n in (1, 2)]
    export_savedmodel(runs[0], tmp_path / "saved")
    export_run(ExportConfig(run=str(runs[1]), delta_for=str(tmp_path / "saved"), out=str(tmp_path / "delta.npz")))
    for file in (tmp_path / "delta.npz", runs[1] / "trained.npz"):
        assert file.stat().st_size <= 20_000
