"""E6: a ported TF1 model gives what its original graph gives, on real checkpoints."""

from __future__ import annotations

import importlib
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from compat_v1.checkpoints.reader import open_checkpoint
from compat_v1.examples import musicnn_vgg, pnet
from compat_v1.graphs import extract, metagraph
from compat_v1.graphs.original import Original
from compat_v1.porting import parity
from engine import porting

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "compat_v1/examples"
BOUND = 1e-5


@pytest.fixture(scope="module")
def checkpoints() -> pathlib.Path:
    """Real checkpoints of TensorFlow 1, with their graphs."""
    shared = pathlib.Path(os.environ.get("FROSTLINE_SHARED", ROOT.parent / "shared"))
    folder = shared / "tf1_checkpoints"
    if not folder.is_dir():
        pytest.skip("the real checkpoints (tf1_checkpoints) are neither in $FROSTLINE_SHARED nor in ../shared")
    return folder


def compared(
    model: Any, rules: str, graph: pathlib.Path, checkpoint: str, inputs: Any, outputs: str, seed: int
) -> parity.Parity:
    asked = parity.parse_outputs(outputs)
    part = extract.extract(
        metagraph.read_metagraph(graph).definition,
        path=graph,
        inputs=inputs,
        outputs=[each.name for each in asked] or None,
    )
    with open_checkpoint(checkpoint) as source:
        ledger = porting.load(model, source, RULES / rules)
        assert (ledger.unused, ledger.missing, ledger.fresh) == ((), (), {})
        original = Original(part, source)
    feeds = parity.make_feeds(part.inputs, examples=5, seed=seed)
    return parity.compare_outputs(original, model, feeds=feeds, outputs=asked or None)


@pytest.mark.parametrize("seed", [0, 1])
def test_pnet_ported_to_keras_gives_what_its_graph_gives(checkpoints: pathlib.Path, seed: int) -> None:
    folder = checkpoints / "mtcnn_PNet_landmark"
    found = compared(
        pnet.build(),
        "pnet.rules",
        folder / "PNet-18.meta",
        f"{folder}/PNet-18",
        None,
        "Reshape_4 | reshape(-1, 2), bbox_pred, landmark_pred",
        seed,
    )
    assert [output.shape for output in found.outputs] == [(256, 2), (256, 4), (256, 10)]
    assert found.max_abs_difference <= BOUND
    assert min(output.scale for output in found.outputs) > 0.05  # not zeros against zeros


@pytest.mark.parametrize("seed", [0, 1])
def test_musicnn_ported_to_keras_gives_what_its_graph_gives(checkpoints: pathlib.Path, seed: int) -> None:
    folder = checkpoints / "musicnn_MTT_vgg"
    switch = {"model/Placeholder_2": False}
    found = compared(musicnn_vgg.build(), "musicnn_vgg.rules", folder / ".meta", f"{folder}/", switch, "", seed)
    assert [(output.name, output.shape) for output in found.outputs] == [("model/Sigmoid:0", (5, 50))]
    assert found.max_abs_difference <= BOUND
    assert found.outputs[0].scale > 0.05


def test_a_saved_model_of_two_graphs_is_compared_with_the_one_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = pathlib.Path(os.environ.get("FROSTLINE_SHARED", ROOT.parent / "shared")) / "faults"
    saved, common = faults / "46_two_graphs/m", faults / "common"
    if not saved.is_dir():
        pytest.skip("the case 46_two_graphs is neither in $FROSTLINE_SHARED/faults nor in ../shared/faults")
    monkeypatch.syspath_prepend(common)
    model = importlib.import_module("v1keras").seven()
    found = compared(model, f"{common}/slim.rules", saved, str(saved), ["images"], "module/resnet_v1_10/logits/out", 0)
    assert found.max_abs_difference <= BOUND
    assert found.outputs[0].scale > 0.05


def test_a_wrong_weight_is_found(checkpoints: pathlib.Path) -> None:
    folder = checkpoints / "mtcnn_PNet_landmark"
    model = pnet.build()
    graph, asked = folder / "PNet-18.meta", ["Reshape_4", "bbox_pred", "landmark_pred"]
    part = extract.extract(metagraph.read_metagraph(graph).definition, path=graph, outputs=asked)
    with open_checkpoint(f"{folder}/PNet-18") as source:
        porting.load(model, source, RULES / "pnet.rules")
        original = Original(part, source)
    kernel = model.get_layer("boxes").kernel
    kernel.assign(kernel.value + np.float32(1e-3))
    feeds = parity.make_feeds(part.inputs)
    found = parity.compare_outputs(
        original, model, feeds=feeds, outputs=parity.parse_outputs("bbox_pred=1,landmark_pred=2")
    )
    assert found.outputs[0].max_abs_difference > BOUND >= found.outputs[1].max_abs_difference
    assert not found.holds(BOUND)
