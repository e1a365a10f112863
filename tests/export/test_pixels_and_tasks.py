"""Exports of networks with a class for each pixel, and of networks with several outputs: each output is what the model gives."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import two_tasks
from pixel_scenes import SIZE, write_scenes

from engine import apply_delta
from engine.data.part import IGNORED
from engine.errors import InputError
from engine.export import checking
from engine.export.checking import ExportError
from engine.export.config import ExportConfig
from engine.export.run import export_run
from engine.export.update import push_delta
from engine.files import Npz
from engine.recipes import evaluation_data
from engine.recipes.evaluation_data import open_examples
from engine.recipes.reopen import open_run

Train = Callable[..., pathlib.Path]


def export(run: pathlib.Path, out: pathlib.Path, kind: str = "savedmodel", **fields: Any) -> dict[str, Any]:
    return dict(export_run(ExportConfig(run=str(run), out=str(out), format=kind, **fields)).record)


def by_signature(folder: pathlib.Path, images: np.ndarray, name: str = "serving_default") -> dict[str, np.ndarray]:
    loaded = tf.saved_model.load(str(folder))
    return {key: value.numpy() for key, value in loaded.signatures[name](images=tf.constant(images)).items()}


def by_tflite(folder: pathlib.Path, images: np.ndarray) -> dict[str, np.ndarray]:
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="the package ai-edge-litert is missing")
    runner = interpreters.Interpreter(model_path=str(folder / "model.tflite")).get_signature_runner("serving_default")
    found = [runner(images=image[None]) for image in images]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


# ---- a class for each pixel


@pytest.fixture(scope="module")
def pixel_run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder)
    return train(
        model="py:pixel_scenes:pixels,preprocess=tf",
        data=f"folder:{folder}",
        image_size="16",
        eval_fraction=0.4,
        batch_size=4,
    )


def test_a_savedmodel_gives_a_class_for_each_pixel(pixel_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    record = export(pixel_run, tmp_path / "saved")
    opened = open_run(pixel_run)
    part = open_examples(opened).part
    read = part.read(np.arange(len(part)))
    chances = opened.predictor()(read["image"])
    found = by_signature(tmp_path / "saved", read["image"].astype(np.float32) / 255)
    np.testing.assert_allclose(found["probabilities"], chances, atol=1e-6)
    assert found["mask"].dtype == np.uint8
    assert (found["mask"] == chances.argmax(axis=-1)).all()
    assert set(found) == {"logits", "probabilities", "mask"}
    checked, counted = record["checked"], read["label"] != IGNORED
    assert counted.sum() < counted.size
    assert checked["model_accuracy"] == (chances.argmax(axis=-1) == read["label"])[counted].mean()
    assert (checked["agreement"], checked["accuracy"]) == (1.0, checked["model_accuracy"])
    assert record["class_names"] == ["ground", "disc", "sea"]
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    files = tf.stack([tf.io.encode_png(image) for image in read["image"]])
    assert (loaded.signatures["from_bytes"](encoded=files)["mask"].numpy() == found["mask"]).all()
    pushed = push_delta(tmp_path / "saved", pixel_run / "trained.npz", tmp_path / "again", force_base=True)
    assert pushed.paths == ("head/kernel",)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_phone_gets_masks_and_quantisation_is_judged_by_pixels(
    pixel_run: pathlib.Path, tmp_path: pathlib.Path, quantize: str
) -> None:
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is missing")
    record = export(pixel_run, tmp_path / "lite", "tflite", quantize=quantize, max_accuracy_loss=0.2)
    opened = open_run(pixel_run)
    images = open_examples(opened).part.read(np.arange(2))["image"]
    logits = opened.network(opened.normalise(images)).numpy()
    found = by_tflite(tmp_path / "lite", images.astype(np.float32) / 255)
    assert found["logits"].shape == (2, SIZE, SIZE, 3)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4 if quantize == "none" else 0.1 * np.abs(logits).max())
    assert record["checked"]["accuracy"] == pytest.approx(record["checked"]["model_accuracy"], abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["unet,6,4", "aspp,6"])
def test_decoders_on_keras_trunks_are_exported_in_every_format(
    train: Train, pixel_run: pathlib.Path, tmp_path: pathlib.Path, head: str
) -> None:
    import keras

    data = open_run(pixel_run).config.data
    run = train(
        model="py:pixel_scenes:trunk,preprocess=tf",
        weights="auto",
        head=head,
        data=data,
        image_size="16",
        eval_fraction=0.4,
        batch_size=4,
    )
    opened = open_run(run)
    images = open_examples(opened).part.read(np.arange(3))["image"]
    floats, chances = images.astype(np.float32) / 255, opened.predictor()(images)
    for kind in ("savedmodel", "keras"):
        export(run, tmp_path / kind, kind)
    np.testing.assert_allclose(by_signature(tmp_path / "savedmodel", floats)["probabilities"], chances, atol=1e-5)
    loaded = keras.models.load_model(tmp_path / "keras/model.keras", compile=False)
    np.testing.assert_allclose(loaded(opened.normalise(images), training=False), chances, atol=1e-5)
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is missing")
    export(run, tmp_path / "tflite", "tflite")
    logits = opened.network(opened.normalise(images), training=False)
    np.testing.assert_allclose(by_tflite(tmp_path / "tflite", floats)["logits"], logits, atol=1e-4)


# ---- several outputs


@pytest.fixture(scope="module")
def patched() -> Any:
    """Data with two tasks, in the place of those that a run or an export opens."""
    source = two_tasks.make_source()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.data.open_data", lambda *_, **__: source)
        patch.setattr(evaluation_data, "open_undivided", lambda *_, **__: source)
        yield source


@pytest.fixture(scope="module")
def tasks_run(train: Train, patched: Any) -> pathlib.Path:
    return train(
        model="py:two_tasks:factory", loss=two_tasks.LOSS, data="fashion_mnist_mini", batch_size=8, learning_rate=0.1
    )


IMAGES = two_tasks.make_arrays(5, seed=9)["image"]
FLOATS = IMAGES.astype(np.float32) / 255


def outputs(run: pathlib.Path) -> dict[str, np.ndarray]:
    """The outputs of a run's network for ``IMAGES``, by task."""
    opened = open_run(run)
    return {name: each.numpy() for name, each in opened.network(opened.normalise(IMAGES)).items()}


def test_a_savedmodel_gives_each_output_by_name_and_takes_deltas(
    tasks_run: pathlib.Path, patched: Any, train: Train, tmp_path: pathlib.Path
) -> None:
    record, own = export(tasks_run, tmp_path / "saved"), outputs(tasks_run)
    found = by_signature(tmp_path / "saved", FLOATS)
    assert set(found) == {"species_logits", "species_probabilities", "species_class", "age_outputs"}
    np.testing.assert_allclose(found["species_logits"], own["species"], atol=1e-5)
    np.testing.assert_allclose(found["species_probabilities"], tf.nn.softmax(own["species"]), atol=1e-6)
    np.testing.assert_allclose(found["age_outputs"], own["age"], atol=1e-5)
    names = [name.decode() for name in found["species_class"]]
    assert names == [two_tasks.CLASSES[number] for number in own["species"].argmax(axis=1)]
    assert record["output"] == {"species": "species_logits", "age": "age_outputs"}
    assert record["loss"] == {"species": "softmax", "age": "mse"}
    assert record["data_names"] == {"species": two_tasks.CLASSES}
    checked = json.loads((tmp_path / "saved/export.json").read_text())["checked"]
    assert set(checked["tasks"]) == {"species", "age"}
    assert checked["tasks"]["species"]["agreement"] == 1.0
    assert checked["tasks"]["age"]["accuracy"] is None
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    assert [name.decode() for name in loaded.class_names["species"].numpy()] == list(two_tasks.CLASSES)

    other = train(
        model="py:two_tasks:factory",
        loss=two_tasks.LOSS,
        data="fashion_mnist_mini",
        batch_size=8,
        learning_rate=0.1,
        steps=4,
    )
    push_delta(tmp_path / "saved", other / "trained.npz", tmp_path / "pushed")
    new, wanted = by_signature(tmp_path / "pushed", FLOATS), outputs(other)
    np.testing.assert_allclose(new["species_logits"], wanted["species"], atol=1e-5)
    np.testing.assert_allclose(new["age_outputs"], wanted["age"], atol=1e-5)
    made = export_run(ExportConfig(run=str(other), delta_for=str(tmp_path / "saved"), out=str(tmp_path / "new.npz")))
    assert made.comparison is None
    push_delta(tmp_path / "saved", tmp_path / "new.npz", tmp_path / "delta")
    np.testing.assert_array_equal(by_signature(tmp_path / "delta", FLOATS)["age_outputs"], new["age_outputs"])


def test_a_delta_for_other_classes_of_an_output_is_refused(
    tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path
) -> None:
    export(tasks_run, tmp_path / "saved")
    place = tmp_path / "saved/export.json"
    record = json.loads(place.read_text())
    record["data_names"]["species"] = ["bee", "ant", "cat"]
    place.write_text(json.dumps(record))
    with pytest.raises(
        InputError, match="its classes of species are ant, bee and cat; the exported model's, bee, ant and cat"
    ):
        push_delta(tmp_path / "saved", tasks_run / "trained.npz", tmp_path / "pushed")


def test_a_phone_gets_each_output_by_name(tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is missing")
    export(tasks_run, tmp_path / "lite", "tflite", updatable="head/species/.*")
    found, own = by_tflite(tmp_path / "lite", FLOATS), outputs(tasks_run)
    np.testing.assert_allclose(found["species_logits"], own["species"], atol=1e-4)
    np.testing.assert_allclose(found["age_outputs"], own["age"], atol=1e-4)
    with pytest.raises(ExportError, match="quantize=dynamic: output 'age': there is no accuracy to compare"):
        export(tasks_run, tmp_path / "small", "tflite", quantize="dynamic", max_accuracy_loss=1.0)
    assert not (tmp_path / "small").exists()


def test_one_wrong_output_of_several_stops_an_export(
    tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_found = checking.name_found

    def planted(subject: Any, found: Any) -> Any:
        found = dict(name_found(subject, found))
        return found | {"age_outputs": found["age_outputs"] + 1e-3}

    monkeypatch.setattr(checking, "name_found", planted)
    with pytest.raises(ExportError, match=r"savedmodel: output 'age': an output differs from the model's by 0\.00"):
        export(tasks_run, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_keras_model_keeps_its_outputs_by_task(train: Train, patched: Any, tmp_path: pathlib.Path) -> None:
    import keras

    given = {
        "loss": two_tasks.LOSS,
        "weights": "auto",
        "data": "fashion_mnist_mini",
        "batch_size": 8,
        "learning_rate": 0.1,
    }
    for number, more in enumerate(({"model": "py:two_tasks:keras_trunk,preprocess=unit", "head": "gap,4"}, {"model": "py:two_tasks:keras_outputs,preprocess=unit"})):  # fmt: skip
        run = train(**given | more)
        record, own = export(run, tmp_path / f"keras{number}", "keras"), outputs(run)
        loaded = keras.models.load_model(tmp_path / f"keras{number}/model.keras", compile=False)
        found = loaded(open_run(run).normalise(IMAGES), training=False)
        np.testing.assert_allclose(found["species"], tf.nn.softmax(own["species"]), atol=1e-5)
        np.testing.assert_allclose(found["age"], own["age"], atol=1e-5)
        assert record["outputs_are"] == {"species": "probabilities", "age": "age_outputs"}


def test_what_cannot_hold_several_outputs_says_so(
    tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InputError, match="did not come from Keras; savedmodel and tflite take any model"):
        export(tasks_run, tmp_path / "out", "keras")
    with pytest.raises(
        InputError, match=r"several outputs \(species and age\), and a ViT of timm or Hugging Face has one"
    ):
        export(tasks_run, tmp_path / "out", "safetensors", rules="vit_timm")
    assert not list(tmp_path.iterdir())


def test_onnx_gives_each_output_by_name(tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path) -> None:
    for package in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"the package {package} is missing")
    assert set(export(tasks_run, tmp_path / "onnx", "onnx")["checked"]["tasks"]) == {"species", "age"}


def test_whole_weights_of_several_outputs_are_a_base_with_a_delta(
    tasks_run: pathlib.Path, patched: Any, tmp_path: pathlib.Path
) -> None:
    opened = open_run(tasks_run)
    base = two_tasks.TwoOutputs()
    np.savez(
        tmp_path / "base.npz",
        **{"trunk/kernel": base.trunk["kernel"].numpy()},
        **{f"head/{name}/kernel": head["kernel"].numpy() for name, head in base.head.items()},
    )
    done = apply_delta(str(tmp_path / "base.npz"), str(tasks_run / "trained.npz"), tmp_path / "whole.npz")
    assert set(done.changed) == {"head/species/kernel", "head/age/kernel"}
    with Npz(tmp_path / "whole.npz") as npz:
        for entry in opened.variables:
            np.testing.assert_array_equal(npz.read(entry.path), entry.variable.numpy())
        assert "task_class_names.json" in npz.others()
