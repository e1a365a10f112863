"""Weights of Keras models: files that fit, files that do not, ImageNet's with and without a network."""

from __future__ import annotations

import functools
import pathlib
import socket
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.models import build_model
from engine.models.keras import heads
from engine.models.keras import weights as keras_weights
from engine.models.keras.weights import ImagenetFile
from engine.porting import PortError
from engine.selection.variables import name_variables

FILE = ImagenetFile("tiny_notop.h5", "https://storage.googleapis.com/keras-applications/tiny_notop.h5", None)


class Tiny:
    """A backbone of one convolution with BatchNorm, and a head."""

    def __init__(self, *, outputs: int = 3, width: int = 4, digest: str | None = None) -> None:
        image = keras.Input((8, 8, 1))
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(width, 3)(image))
        self.backbone = keras.Model(image, x, name="Tiny")
        self.network = heads.add_head(self.backbone, heads.parse_head("gap,dropout=0.5"), outputs)
        file = ImagenetFile(FILE.name, FILE.origin, digest)
        self.load = functools.partial(
            keras_weights.load_weights, spec="keras:Tiny", network=self.network, backbone=self.backbone, imagenet=file
        )

    def values(self, *, head: bool = True) -> dict[str, np.ndarray]:
        entries = name_variables(self.network)
        return {e.path: e.variable.numpy() for e in entries if head or "head" not in e.groups}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("part", ["backbone", "network"])
@pytest.mark.parametrize("suffix", ["weights.h5", "keras", "h5"])
def test_a_file_fits_the_backbone_or_the_model(part: str, suffix: str, tmp_path: pathlib.Path) -> None:
    one, other = Tiny(), Tiny()
    path = tmp_path / f"{part}.{suffix}"
    if suffix == "weights.h5":
        getattr(one, part).save_weights(path)
    elif suffix == "keras":
        getattr(one, part).save(path)
    else:
        legacy(getattr(one, part), path)
    before = other.values()
    head = {path: value for path, value in before.items() if path.startswith("head/")}
    said = other.load(str(path))
    assert not same(before, other.values())
    if part == "network":
        assert said is not None
        assert said.startswith(f"{path.name}, all of the model")
        assert same(one.values(), other.values())
    else:
        assert said is not None
        assert said.startswith(f"{path.name}, all of the backbone; new head")
        assert same(one.values(head=False), other.values())
        assert same(head, other.values())


def test_a_model_file_with_another_head_gives_its_backbone(tmp_path: pathlib.Path) -> None:
    one, other = Tiny(outputs=9), Tiny()
    one.network.save(tmp_path / "nine.keras")
    assert other.load(str(tmp_path / "nine.keras")) == "nine.keras, all of the backbone; new head"
    assert same(one.values(head=False), other.values())


def test_files_that_do_not_fit_name_both_sides_and_change_nothing(tmp_path: pathlib.Path) -> None:
    wide = Tiny(width=5)
    wide.backbone.save_weights(tmp_path / "wide.weights.h5")
    wide.network.save(tmp_path / "wide.keras")
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]).save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "cut.weights.h5").write_bytes((tmp_path / "wide.weights.h5").read_bytes()[:1000])
    (tmp_path / "page.h5").write_text("<html>")
    (tmp_path / "page.keras").write_text("<html>")
    model = Tiny()
    before = model.values()
    for name, message in {
        "wide.weights.h5": r"(?s)does not fit the backbone:\n  of another shape or type \(6\):\n    Tiny/conv2d\w*/vars/0: "
        r"\[3, 3, 1, 4\] in the model, \[3, 3, 1, 5\] in the file",
        "wide.keras": r"(?s)of another shape or type \(6\):\n    Tiny/conv2d\w*/kernel: \[3, 3, 1, 4\] in the model, \[3, 3, 1, 5\]",
        "other.weights.h5": r"(?s)in the model, not in the file \(6\).*in the file, not in the model \(2\)",
        "cut.weights.h5": "not an HDF5 file, or a truncated one",
        "page.h5": "not an HDF5 file, or a truncated one",
        "page.keras": "not a Keras model, or damaged",
        "nowhere.weights.h5": "there is no such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            model.load(str(tmp_path / name))
    assert same(before, model.values())
    assert model.load("weights.npz") is None  # for engine.porting


def test_a_runs_checkpoint_is_a_weights_file_also_where_dropouts_have_a_state(tmp_path: pathlib.Path) -> None:
    from engine import porting
    from engine.training import checkpoint

    one, other, nine = Tiny(), Tiny(), Tiny(outputs=9)
    file = checkpoint.save(tmp_path, 1, variables=name_variables(one.network), arrays={}.items, state={})
    assert porting.load(other.network, file).fresh == {}
    assert same(one.values(), other.values())
    assert list(porting.load(nine.network, file).fresh) == ["head/logits/kernel", "head/logits/bias"]
    assert same(one.values(head=False), nine.values())


# ---- ImageNet's


def legacy(model: Any, path: pathlib.Path) -> None:
    """Writes a file in the layout of Keras 2, as the ImageNet files have it."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.fixture
def models_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where Keras keeps its files, empty; and a network in which nothing answers."""
    from keras.src.backend import config

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path / "keras"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "keras" / "models"


def test_imagenet_weights_are_used_where_the_file_is(models_folder: pathlib.Path) -> None:
    one = Tiny()
    legacy(one.backbone, models_folder / FILE.name)
    for weights in ("imagenet", "auto"):
        model = Tiny()
        assert model.load(weights) == f"ImageNet ({FILE.name}); new head"
        assert same(one.values(head=False), model.values())
    assert str(Tiny().load("none")).startswith("random; statistics stay as they are too")
    with pytest.raises(
        PortError, match=r"digest is [0-9a-f]{32}; expected 00000000000000000000000000000000. Delete it"
    ):
        Tiny(digest="0" * 32).load("auto")
    (models_folder / FILE.name).write_bytes(b"damaged")
    with pytest.raises(PortError, match="does not fit Tiny, or is damaged"):
        Tiny().load("imagenet")


def test_an_application_names_keras_own_file_and_takes_it(models_folder: pathlib.Path) -> None:
    spec = "keras:MobileNetV2,alpha=0.35"
    one, other = (build_model(spec, image_shape=(32, 32, 3), outputs=3, seed=seed) for seed in (1, 2))
    assert one.load is not None
    assert other.load is not None
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    legacy(one.load.keywords["backbone"], models_folder / name)  # type: ignore[attr-defined]
    assert other.load("imagenet") == f"ImageNet ({name}); new head"
    loaded = {entry.path: entry.variable.numpy() for entry in name_variables(other.network)}
    assert all(
        np.array_equal(e.variable, loaded[e.path]) for e in name_variables(one.network) if "head" not in e.groups
    )


def test_imagenet_weights_without_a_network_name_the_file_and_its_place(models_folder: pathlib.Path) -> None:
    with pytest.raises(PortError) as raised:
        Tiny().load("imagenet")
    message = str(raised.value)
    assert "cannot be downloaded" in message
    assert f"download\n  {FILE.origin}\nelsewhere and copy it to\n  {models_folder / FILE.name}" in message
    assert str(Tiny().load("auto")).startswith(f"random; --weights=imagenet downloads {FILE.name}")
    assert not (models_folder / FILE.name).exists()


def test_a_server_that_never_answers_does_not_hang(
    models_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(keras_weights, "TIMEOUT", 0.5)
        with pytest.raises(PortError, match="cannot be downloaded"):
            Tiny().load("imagenet")
    assert socket.getdefaulttimeout() is None


def test_networks_without_imagenet_weights_say_why() -> None:
    model = build_model("keras:MobileNetV2,alpha=0.2", image_shape=(32, 32, 3), outputs=3)
    assert model.load is not None
    with pytest.raises(PortError, match=r"has no ImageNet weights: .*alpha must be one of"):
        model.load("imagenet")


def test_a_normalization_layer_computes_with_values_that_were_assigned(tmp_path: pathlib.Path) -> None:
    from engine import porting
    from engine.training import checkpoint

    def make() -> Any:
        return keras.Sequential(
            [keras.Input((2, 2, 3)), keras.layers.Normalization(), keras.layers.Flatten(), keras.layers.Dense(2)]
        )

    source = make()
    source.layers[0].adapt(np.random.default_rng(0).normal(3.0, 2.0, (64, 2, 2, 3)).astype(np.float32))
    x = np.ones([1, 2, 2, 3], np.float32)
    file = checkpoint.save(tmp_path, 1, variables=name_variables(source), arrays={}.items, state={})
    for restore in (
        lambda network: checkpoint.restore(checkpoint.read(file), name_variables(network)),
        lambda network: porting.restore_strict(network, tf.train.Checkpoint(source).save(str(tmp_path / "ckpt"))),
    ):
        network = make()
        restore(network)
        np.testing.assert_allclose(network(x), source(x), rtol=1e-6)
