"""Each shipped rule file of the zoo, on its network with TensorFlow 1's own operations and random weights."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from slim_layers import Ran, run, write
from zoo_cases import KERAS, PUBLISHED, QUICK, SLOW, Case

from compat_v1.examples import slim_resnet
from compat_v1.porting import port
from engine import models, porting
from engine.porting.ledger import Ledger
from engine.porting.proposals.propose import list_entries, propose
from engine.porting.readers.source import open_tensors
from engine.selection.variables import name_variables

BOUND = 1e-5
AGREED = 0.95


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    import keras

    yield
    keras.utils.clear_session(free_memory=False)
    gc.collect()


def make_inputs(case: Case) -> np.ndarray:
    generator = np.random.default_rng(3)
    if not case.size:  # tokens, mask and segments
        lengths = np.array([[9], [16]])
        mask = np.arange(16) < lengths
        return np.stack([generator.integers(0, 99, mask.shape), mask, generator.integers(0, 2, mask.shape)]).astype(
            np.int32
        )
    shape = (case.size, case.size, 3) if isinstance(case.size, int) else case.size
    contrasts = np.array([0.3, 1.5], np.float32)[:, None, None, None]
    return contrasts * (
        generator.standard_normal((2, *shape), np.float32)
        + generator.standard_normal((2, 1, 1, 3), np.float32)[..., : shape[-1]]
    )


def call(case: Case, model: Any, inputs: np.ndarray) -> np.ndarray:
    if not case.size:
        return np.asarray(model(list(inputs), training=False)[0])
    return np.asarray(model(inputs[..., ::-1] if case.swapped else inputs, training=False))


def compare(case: Case, folder: pathlib.Path, *, session: bool = True, auto: bool = True) -> tuple[Ledger, Ran]:
    """Ports the checkpoint of a network, and compares the outputs of both and the lines with those of --auto."""
    inputs = make_inputs(case)
    checkpoint = folder / "model.ckpt"
    ran = run(case.network, case.layers, inputs, checkpoint, averages=case.averages, session=session)
    wanted = ran.outputs[..., 1:] if case.background else ran.outputs
    model = case.model()
    ledger = porting.load(model, checkpoint)  # the names choose the rules
    assert ledger.rules == f"{case.rules}.rules"
    assert (ledger.missing, ledger.unused, ledger.fresh) == ((), (), {})
    found = call(case, model, inputs)
    scale = float(np.abs(wanted).max())
    assert float(np.abs(wanted[0] - wanted[1]).max()) > 0.02 * scale > 0.001  # it depends on the images
    difference = float(np.abs(found - wanted).max()) / scale
    assert difference <= BOUND
    if auto:
        agreed, told = compare_lines(checkpoint, model, ledger, averages=case.averages)
        assert agreed >= AGREED, f"{agreed:.1%}:\n" + "\n".join(told[:20])
        print(f"{case.rules}: {len(ledger.loaded)} lines, {agreed:.1%} as --auto; {difference:.1e}")
    return ledger, ran


def compare_lines(checkpoint: pathlib.Path, model: Any, ledger: Ledger, *, averages: bool) -> tuple[float, list[str]]:
    """Returns the share of the ledger's lines that --auto (with --take_ema for averages) proposes, and the others."""
    with port.Weights(open_tensors(checkpoint), averages=averages) as source:
        lines = propose(list_entries(source), name_variables(model), layout="tf").renamed(source.real).lines
    proposed = {line.target: line.source for line in lines}
    differing = [made for made in ledger.loaded if proposed.get(made.target) != made.source]
    told = [f"{made.target} <- {made.source}, not {proposed.get(made.target)}" for made in differing]
    return 1 - len(differing) / len(ledger.loaded), told


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pathlib.Path]:
    """ported(NAME) compares a quick case once, and returns the folder of its checkpoint."""
    done: dict[str, pathlib.Path] = {}

    def find(name: str) -> pathlib.Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            compare(QUICK[name], folder, session=False)
            done[name] = folder
        return done[name]

    return find


@pytest.mark.parametrize("name", QUICK)
def test_a_small_network_of_each_kind_computes_the_same(name: str, ported: Callable[[str], pathlib.Path]) -> None:
    assert ported(name).is_dir()


def renamed(folder: pathlib.Path, name: Callable[[str], str], *others: str) -> pathlib.Path:
    """Writes the checkpoint under other names, with other tensors besides, and returns its path."""
    with open_tensors(folder / "model.ckpt") as source:
        values = {name(each): source.read(each) for each in source.names()}
    write(folder / "renamed.ckpt", values | dict.fromkeys(others, np.zeros(2, np.float32)))
    return folder / "renamed.ckpt"


def test_the_backbone_of_a_detector_is_ported_into_a_network_with_a_new_head(
    ported: Callable[[str], pathlib.Path],
) -> None:
    folder = ported("mobilenet_v1")
    checkpoint = renamed(
        folder,
        lambda name: name if "Logits" in name or "/" not in name else f"FeatureExtractor/{name}",
        "BoxPredictor_0/ClassPredictor/weights",
        "FeatureExtractor/MobilenetV1/Conv2d_13_pointwise_1_Conv2d_2_1x1_256/weights",
        "FeatureExtractor/MobilenetV1/Conv2d_0/weights/RMSProp_1",
    )
    model = models.build_network("keras:MobileNet,alpha=0.25", image_size=(32, 32))
    ledger = porting.load(model, checkpoint)
    assert ledger.rules == "slim_mobilenet_v1.rules"
    made = {each.target: each.source for each in ledger.loaded}
    assert made["MobileNet/conv_dw_1/kernel"] == ("FeatureExtractor/MobilenetV1/Conv2d_1_depthwise/depthwise_weights",)
    assert made["head/logits/kernel"] == ("MobilenetV1/Logits/Conv2d_1c_1x1/weights",)
    assert len(ledger.skipped) == 4
    assert "multiples of 32" in ledger.summary()


def test_the_two_stages_of_a_detector_are_one_backbone(ported: Callable[[str], pathlib.Path]) -> None:
    def stage(name: str) -> str:
        second = "block4" in name
        return f"{'Second' if second else 'First'}StageFeatureExtractor/{name}" if "/" in name else name

    folder = ported("resnet_v1")
    checkpoint = renamed(
        folder, stage, "Conv/weights", "FirstStageBoxPredictor/ClassPredictor/biases", "SecondStageBoxPredictor/a/b"
    )
    ledger = porting.load(QUICK["resnet_v1"].model(), checkpoint)
    assert len(ledger.skipped) == 4
    assert {each.source[0].split("/")[0] for each in ledger.loaded if each.target.startswith("block4")} == {
        "SecondStageFeatureExtractor"
    }


def test_other_classes_keep_a_new_head(ported: Callable[[str], pathlib.Path]) -> None:
    checkpoint = ported("resnet_v1") / "model.ckpt"
    ledger = porting.load(slim_resnet.build_v1((2, 1, 1, 1), (64, 64, 3), 5, width=8), checkpoint)
    assert "10] in the file" in ledger.fresh["logits/kernel"]
    assert set(ledger.fresh) == {"logits/kernel", "logits/bias"}


def test_without_averages_the_last_values_are_taken(ported: Callable[[str], pathlib.Path]) -> None:
    folder = ported("efficientnet")
    with open_tensors(folder / "model.ckpt") as source:
        plain = {name: source.read(name) for name in source.names() if "Average" not in name}
    write(folder / "plain.ckpt", plain)
    model = QUICK["efficientnet"].model()
    averages = porting.load(model, folder / "model.ckpt")
    assert all("Average" in each.source[0] for each in averages.loaded)
    assert {each.rule for each in averages.skipped if each.name != "global_step"} == {"its average is used"}
    last = porting.load(model, folder / "plain.ckpt")
    assert {each.target for each in last.loaded} == {each.target for each in averages.loaded}
    assert not any("Average" in each.source[0] for each in last.loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_published_network_computes_the_same(name: str, tmp_path: pathlib.Path) -> None:
    _, ran = compare(SLOW[name], tmp_path)
    if name.startswith("vgg_"):  # made for 32 pixels, where fc6 reads a single place instead of 7x7
        ran.shapes[f"{name}/fc6/weights"] = (7, 7, 512, 4096)
    if name in PUBLISHED:
        assert ran.digest() == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_a_network_of_keras_applications_with_numbers_for_names_computes_the_same(
    name: str, tmp_path: pathlib.Path
) -> None:
    compare(KERAS[name], tmp_path, auto=False)
