"""An exported SavedModel serves alone: without Frostline, from files, with class names, and takes a delta."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import forked
import numpy as np
import pytest
import tensorflow as tf

from engine.errors import InputError
from engine.export import run as exporting
from engine.export.checking import ExportError
from engine.export.config import ExportConfig
from engine.export.opening import open_subject
from engine.export.run import export_run, export_savedmodel
from engine.recipes.reopen import open_run

SERVE = """
import importlib.abc, json, sys
for name in [name for name in sys.modules if name.split(".")[0] == "engine"]:
    del sys.modules[name]
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"engine", "compat_v1", "scripts", "frostline_programs"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
serve, files = loaded.signatures["serving_default"], loaded.signatures["from_bytes"]
found = serve(images=tf.constant(given["images"]))
encoded = tf.stack([tf.io.encode_png(np.uint8(np.rint(image * 255))) for image in given["images"]])
from_files = files(encoded=encoded)
features = loaded.signatures["features"](images=tf.constant(given["images"]))["features"]
updated = loaded.signatures["load_delta"](**{name[6:]: tf.constant(given[name]) for name in given if name.startswith("delta/")})
after = serve(images=tf.constant(given["images"]))
np.savez(sys.argv[3], logits=found["logits"], probabilities=found["probabilities"], after=after["logits"],
         files=from_files["logits"], features=features, updated=updated["updated"])
print(json.dumps([[name.decode() for name in found["class"].numpy()], [name.decode() for name in loaded.class_names.numpy()]]))
assert not [name for name in sys.modules if name.split(".")[0] == "engine"]
"""


def test_it_serves_in_a_process_without_frostline(
    programs: forked.Programs,
    exported: pathlib.Path,
    vit_run: pathlib.Path,
    tmp_path: pathlib.Path,
    small_data: pathlib.Path,
) -> None:
    opened = open_run(vit_run)
    with np.load(small_data) as data:
        images = data["test_images"][:5].astype(np.float32) / 255
    record = json.loads((exported / "export.json").read_text())
    arguments = record["load_delta"]["arguments"]
    assert set(arguments) == {"head/kernel", "head/bias"}
    rng = np.random.default_rng(0)
    own = opened.variables.by_path()
    delta = {path: rng.standard_normal(own[path].shape).astype(np.float32) for path in arguments}
    np.savez(tmp_path / "given.npz", images=images, **{f"delta/{arguments[path]}": v for path, v in delta.items()})
    words = [str(exported), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    done = programs.run(["-c", SERVE, *words])
    assert done.returncode == 0, done.stderr
    assert "custom gradients" not in done.stderr
    assert "failed" not in done.stderr
    chosen, names = json.loads(done.stdout)
    with np.load(tmp_path / "found.npz") as found:
        logits = opened.network(opened.normalise(images), training=False).numpy()
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
        np.testing.assert_allclose(found["files"], logits, atol=1e-5)
        np.testing.assert_allclose(found["probabilities"], tf.nn.softmax(logits), atol=1e-6)
        assert chosen == [names[number] for number in logits.argmax(axis=1)]
        assert names == ["0", "1", "2"] == record["class_names"]
        kernel, bias = own["head/kernel"].variable.numpy(), own["head/bias"].variable.numpy()
        np.testing.assert_allclose(found["features"] @ kernel + bias, logits, atol=1e-5)
        assert found["updated"] == [2]
        expected = found["features"] @ delta["head/kernel"] + delta["head/bias"]
        np.testing.assert_allclose(found["after"], expected, atol=1e-4)


def test_pixels_up_to_255_are_refused(exported: pathlib.Path) -> None:
    loaded = tf.saved_model.load(str(exported))
    for name in ("serving_default", "features"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="divide pixels by 255"):
            loaded.signatures[name](images=tf.fill([1, 16, 16, 1], 200.0))


def test_an_export_never_replaces_anything(exported: pathlib.Path, vit_run: pathlib.Path) -> None:
    before = (exported / "saved_model.pb").read_bytes()
    with pytest.raises(InputError, match=r"out=.*exported: it exists"):
        export_savedmodel(vit_run, exported)
    assert (exported / "saved_model.pb").read_bytes() == before


def test_a_failed_check_writes_nothing(
    vit_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exporting.savedmodel, "save_model", lambda _, out: (out / "saved_model.pb").write_text("") and {}
    )
    monkeypatch.setattr(exporting.savedmodel, "open_saved", lambda *_: lambda images: np.zeros([len(images), 3]))
    with pytest.raises(
        ExportError, match=r"savedmodel: an output differs from the model's by 0\.\d+, and at most 1e-05"
    ):
        export_savedmodel(vit_run, tmp_path / "new" / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "mse", "data": "targets", "model": "cnn:mini"},
        {"loss": "sigmoid", "data": "multi"},
        {"model": "cnn:mini", "precision": "mixed_bfloat16"},
        {"model": "vit:mini,depth=1,fc_norm,pool=mean", "precision": "float64", "ema": 0.5},
    ],
)
def test_every_loss_and_precision_is_exported(
    train: Callable[..., pathlib.Path], small_data: pathlib.Path, tmp_path: pathlib.Path, fields: dict
) -> None:
    with np.load(small_data) as data:
        arrays = dict(data)
    for prefix in ("train", "test"):
        labels = arrays[f"{prefix}_labels"]
        if fields.get("data") == "multi":
            arrays[f"{prefix}_labels"] = np.stack([labels == 0, labels > 0], 1).astype(np.float32)
        elif fields.get("data") == "targets":
            arrays[f"{prefix}_labels"] = labels.astype(np.float32)
    np.savez(tmp_path / "data.npz", **arrays)
    run = train(**fields | {"data": f"npz:{tmp_path / 'data.npz'}"})
    averages = "ema" in fields
    found = export_run(ExportConfig(run=str(run), out=str(tmp_path / "saved")))
    assert found.record["averages"] == averages  # what the run evaluated
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    opened = open_run(run, averages=averages)
    images = arrays["test_images"][:3].astype(np.float32) / 255
    outputs = loaded.signatures["serving_default"](images=tf.constant(images))
    name = "outputs" if fields.get("loss") == "mse" else "logits"
    # run op by op, bfloat16 rounds between operations that a graph fuses: by 2 of its last bits, of 8, at most
    rounding = 2**-6 if "bfloat16" in fields.get("precision", "") else 1e-7
    expected = opened.network(opened.normalise(images), training=False).numpy()
    np.testing.assert_allclose(outputs[name], expected, rtol=rounding, atol=1e-5)
    assert found.comparison.largest_difference <= 1e-5
    assert ("class" in outputs) == (fields.get("loss") is None)
    if fields.get("loss") == "sigmoid":
        np.testing.assert_allclose(outputs["probabilities"], tf.sigmoid(outputs["logits"]), atol=1e-6)


def test_a_run_whose_data_moved_says_so(
    vit_run: pathlib.Path, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(vit_run, tmp_path / "run")
    flags = tmp_path / "run" / "flags.json"
    flags.write_text(flags.read_text().replace(str(small_data), "/was/here.npz"))
    with pytest.raises(InputError, match=r"npz:/was/here\.npz, are not there.*--data says where they are now"):
        export_savedmodel(tmp_path / "run", tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert len(open_subject(tmp_path / "run", data=f"npz:{small_data}").examples) == 6


def test_the_snippet_for_servers_works_as_printed(
    exported: pathlib.Path,
    snippets: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("exported").symlink_to(exported)
    pathlib.Path("photo.jpg").write_bytes(tf.io.encode_jpeg(tf.zeros([20, 30, 3], tf.uint8)).numpy())
    exec(snippets[0], {})
    assert capsys.readouterr().out.split()[0] in ("0", "1", "2")
