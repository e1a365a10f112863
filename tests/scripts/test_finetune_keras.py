"""finetune on Keras models, run as a user runs it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from engine.files import Npz

MODEL = "--model=keras:MobileNetV2,alpha=0.35"
SHORT = ["--batch_size=16", "--log_every=1", "--eval_fraction=0.2", "--eval_every=3", "--learning_rate=2e-3"]


@pytest.fixture(scope="module")
def colour_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """60 images of 32x32 in three classes that differ in colour."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 120, (60, 32, 32, 3))
    images[np.arange(60), :, :, labels] += 100
    path = tmp_path_factory.mktemp("colour") / "colour.npz"
    np.savez(path, train_images=images.astype(np.uint8), train_labels=labels)
    return path


def read(out: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


@pytest.mark.slow
def test_head_then_last_20_layers_is_one_command(call: Any, colour_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    phases = [
        "--phase=name=head train=@head steps=4",
        "--phase=name=upper train='@layers(MobileNetV2)[-20:] @head' steps=3 learning_rate=1e-4",
    ]
    flags = [MODEL, f"--data=npz:{colour_data}", "--weights=none", "--head=gap,16,dropout=0.2", *SHORT, *phases]
    code, printed, err = call(*flags, f"--out={out}")
    assert code == 0, err
    assert "weights: random; statistics stay as they are too, unless the filter contains @stats" in printed
    run = read(out)
    head, upper = run["phases"]
    assert head["trained"] == [f"head/{name}" for name in ("hidden_0/kernel", "hidden_0/bias", "logits/kernel", "logits/bias")]  # fmt: skip
    assert set(head["trained"]) < set(upper["trained"])
    assert any(path.startswith("MobileNetV2/block_16_") for path in upper["trained"])
    assert head["moving"] == upper["moving"] == []
    assert run["freeze_proof"]["verified"]
    assert [json.loads(line)["learning_rate"] for line in (out / "metrics.jsonl").open() if '"train"' in line][
        4
    ] == 1e-4
    # a resume builds the same network, and finds nothing left to train
    code, printed, err = call(*flags, f"--out={out}", "--resume")
    assert code == 0, err
    assert "7 steps trained" in printed
    with Npz(out / "trained.npz") as trained:
        assert not [name for name in trained.names() if "moving" in name]


@pytest.mark.slow
def test_default_phases_train_a_backbone_on_gray_images(call: Any, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (40, 32, 32), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "gray.npz", train_images=images, train_labels=labels)
    model = "--model=keras:MobileNet,alpha=0.25"  # half as many layers to trace
    flags = [model, f"--data=npz:{tmp_path / 'gray.npz'}", "--loss=sigmoid", "--steps=4", *SHORT]
    code, printed, err = call(*flags, f"--out={tmp_path / 'run'}")
    assert code == 0, err
    assert "grayscale images are repeated to 3 channels" in printed
    assert [phase["name"] for phase in read(tmp_path / "run")["phases"]] == ["head", "upper"]
    assert read(tmp_path / "run")["freeze_proof"]["verified"]


def test_a_saved_model_trains_with_its_head_and_with_a_new_one(
    call: Any, colour_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import keras

    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(tmp_path / "m.keras")
    flags = [f"--model=file:{tmp_path / 'm.keras'}", f"--data=npz:{colour_data}", *SHORT, "--steps=4"]
    code, printed, err = call(*flags, f"--out={tmp_path / 'own'}")
    assert code == 0, err
    assert "the final softmax was removed" in printed
    assert f"weights: those of {tmp_path / 'm.keras'}" in printed
    assert read(tmp_path / "own")["phases"][0]["trained"] == ["dense/kernel", "dense/bias"]
    notes = read(tmp_path / "own")["model"]["notes"]
    assert [note.split(" (")[0] for note in notes[:-1]] == ["images are scaled to -1 to 1"]
    assert all(note in printed for note in notes)
    code, _, err = call(*flags, "--head=gap,8", f"--out={tmp_path / 'new'}")
    assert code == 0, err
    assert "cut off: its top dense" in read(tmp_path / "new")["model"]["notes"][-1]
    assert read(tmp_path / "new")["phases"][0]["trained"][-1] == "head/logits/bias"
    assert any(path.startswith("backbone/") for path in read(tmp_path / "new")["phases"][1]["trained"])


def test_bad_models_weights_and_heads_end_with_code_2(
    call: Any, colour_data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.backend import config

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path / "keras"))
    (tmp_path / "mine.py").write_text("def nothing(image_shape, outputs): return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    for flags, message in (
        ([MODEL, "--weights=imagenet"], f"copy it to\n  {tmp_path / 'keras' / 'models' / file}"),
        (["--model=py:mine:nothing"], "mine:nothing((32, 32, 3), 3) returned NoneType"),
        ([MODEL, "--head=gpa"], "expected it to begin with gap, gmp or flatten"),
        (["--model=vit:mini", "--head=gap"], "vit:mini has its own head"),
        ([MODEL, "--weights=nowhere.keras"], "weights='nowhere.keras': there is no such file"),
    ):
        code, _, err = call(*flags, *SHORT, f"--data=npz:{colour_data}", f"--out={tmp_path / 'run'}", "--steps=2")
        assert (code, message in err) == (2, True), err
