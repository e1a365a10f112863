"""A job traces its network once for each phase and once for its evaluation, and infers the shapes of each graph once."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from engine import FinetuneConfig, finetune
from engine.graphs import batch_shapes
from engine.models import vit


@pytest.mark.parametrize(
    ("phases", "cache", "training", "evaluations"),
    [((), "require", 2, 2), (("name=all train=@all steps=2",), "auto", 1, 0)],
    ids=["two cached phases", "everything"],
)
def test_a_network_is_traced_once_for_each_phase_and_its_evaluation(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    phases: tuple[str, ...],
    cache: str,
    training: int,
    evaluations: int,
) -> None:
    modes: list[bool] = []
    inferred: dict[tuple[int, int], Any] = {}
    call, infer = vit.ViT.__call__, batch_shapes._infer

    def counted(network: Any, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        modes.append(training)
        return call(network, images, training=training, seeds=seeds)

    def inferring(graph: Any, ops: Any, inputs: Any, given: Any, size: int) -> Any:
        assert (id(graph), size) not in inferred
        inferred[id(graph), size] = graph  # kept, so that no other graph gets its id
        return infer(graph, ops, inputs, given, size)

    monkeypatch.setattr(vit.ViT, "__call__", counted)
    monkeypatch.setattr(batch_shapes, "_infer", inferring)
    config = FinetuneConfig(
        model="vit:mini,depth=3",
        weights="none",
        data="fashion_mnist_mini",
        train_examples=32,
        batch_size=16,
        steps=None if phases else 4,
        phase=phases,
        cache=cache,
        cache_dir=str(tmp_path / "cache"),
        out=str(tmp_path / "run"),
        dry_run=True,
        deterministic=False,
    )
    assert finetune(config).reason == "dry_run"
    assert (modes.count(True), modes.count(False)) == (training, evaluations)
    assert len({graph for graph, _ in inferred}) <= training + 2 * evaluations  # and the steps above the lines
