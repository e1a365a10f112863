"""An old graph is fine-tuned like any model: phases, cache, resume, evaluation, and its own loss and slots."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from made_graphs import CLASSES, batch_norm, dense, write_graph

import compat_v1  # noqa: F401 - adds graph: to the engine's models
from engine.errors import InputError
from engine.files import Npz
from engine.recipes.apply_delta import apply_delta
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import DONE, STOPPED, RunResult, finetune
from engine.recipes.listener import Listener
from engine.recipes.reopen import open_run
from engine.runs import picture, records

v1 = tf.compat.v1
SHAPE = (8, 8, 3)


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No curves, which would take most of the time; and op determinism off again."""
    from engine.tensorflow_private import disable_op_determinism

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    yield
    disable_op_determinism()


class Hearing(Listener):
    """Keeps what it hears, and stops after some steps."""

    stopped_by = "the test"

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[str] = []
        self.stop_after, self.steps = stop_after, 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def handle(self, event: Any) -> None:
        self.steps += event.kind == "step"

    def should_stop(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def network(x: Any, dtype: Any) -> Any:
    training = v1.placeholder(tf.bool, [], name="is_training")
    keep = v1.placeholder(dtype, [], name="keep_prob")
    kernel = v1.get_variable("conv/kernel", [3, 3, 3, 4], dtype, v1.glorot_uniform_initializer(seed=1, dtype=dtype))
    maps = tf.reduce_mean(tf.nn.conv2d(x, kernel, 2, "SAME"), [1, 2], name="features")
    h = tf.nn.relu(batch_norm(maps, training, dtype, form="fused", name="conv/bn"))
    return dense(v1.nn.dropout(h, keep_prob=keep), CLASSES, "last", dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("graph")
    write_graph(folder, network, dtype=tf.float32, shape=SHAPE, optimizer="momentum")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, *SHAPE), np.uint8), np.arange(60) % CLASSES
    np.savez(
        folder / "data.npz",
        train_images=images[:40],
        train_labels=labels[:40],
        test_images=images[40:],
        test_labels=labels[40:],
    )
    return folder


def config(folder: pathlib.Path, out: pathlib.Path, **given: Any) -> FinetuneConfig:
    common = {
        "model": f"graph:{folder}/model.meta,preprocess=tf",
        "inputs": "x",
        "outputs": "logits",
        "graph_inputs": "keep_prob=0.8",
        "data": f"npz:{folder}/data.npz",
        "train": "last/.*",
        "steps": 6,
        "batch_size": 16,
        "optimizer": "momentum",
        "checkpoint_every": 2,
        "log_every": 1,
        "cache": "off",
    }
    return FinetuneConfig(out=str(out), **(common | given))


def run(config: FinetuneConfig, listener: Hearing | None = None) -> RunResult:
    found = finetune(config, listener=listener or Hearing())
    assert found.code in (DONE, STOPPED), found.reason
    return found


def trained(out: pathlib.Path) -> dict[str, bytes]:
    with Npz(out / "trained.npz") as file:
        return {name: file.read(name).tobytes() for name in file.names()}


def losses(out: pathlib.Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_to_the_bit(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given = {"train": "@all @stats", "micro_batches": None}
    run(config(folder, tmp_path / "whole", **given))
    run(config(folder, tmp_path / "parts", **given), Hearing(stop_after=3))
    run(config(folder, tmp_path / "parts", resume=True, **given))
    assert trained(tmp_path / "parts") == trained(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert "conv/bn/moving_mean" in trained(tmp_path / "whole")


def test_a_cached_run_trains_alike_and_evaluates_as_it_did(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = {cache: run(config(folder, tmp_path / cache, cache=cache)) for cache in ("off", "require")}
    np.testing.assert_allclose(losses(tmp_path / "require"), losses(tmp_path / "off"), rtol=1e-5)
    facts = json.loads((tmp_path / "require/run.json").read_text())
    assert facts["cache"]["used"]
    assert facts["freeze_proof"]["verified"]
    assert sorted(facts["phases"][0]["trained"]) == ["last/bias", "last/kernel"]
    opened = open_run(tmp_path / "off")
    report = evaluate(opened, open_examples(opened, say=lambda _: None))
    assert report.figures["loss"] == found["off"].run["final"]["eval_loss"]


def test_the_loss_and_the_slots_of_the_graph(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    listener = Hearing()
    run(config(folder, tmp_path / "own", loss="graph:loss", train="@all", steps=2), listener)
    assert any("momentum continues from momentum of 5 of 5" in line for line in listener.lines)
    run(config(folder, tmp_path / "each", loss="graph:each/each", train="@all", steps=2, slots="fresh"))
    with pytest.raises(InputError, match="is not a graph that has a loss"):
        run(FinetuneConfig(model="cnn:mini", loss="graph:loss", steps=1, out=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "cnn:mini"}, r"inputs=x: it is about a graph"),
        ({"features": "features"}, "a new head replaces the old outputs"),
        ({"graph_inputs": None}, "keep_prob"),
        ({"precision": "mixed_bfloat16"}, "float32 or float64"),
        ({"loss": "graph:nosuch"}, "loss=nosuch.*nearest"),
        ({"model": "graph:nosuch.meta,preprocess=tf"}, "nosuch.meta"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    folder: pathlib.Path, tmp_path: pathlib.Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        finetune(config(folder, tmp_path / "run", **given), listener=Hearing())
    assert not (tmp_path / "run/checkpoints").exists()


def simple(x: Any, dtype: Any) -> Any:
    kernel = v1.get_variable("conv/kernel", [3, 3, 3, 4], dtype, v1.glorot_uniform_initializer(seed=1, dtype=dtype))
    return dense(tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME")), [1, 2]), CLASSES, "last", dtype)


def test_a_frozen_graph_trains_and_is_written_back(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = write_graph(tmp_path, simple, dtype=tf.float32, shape=SHAPE, optimizer="sgd")
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(str(path)).restore(session, str(path.with_suffix("")))
        frozen = v1.graph_util.convert_variables_to_constants(session, session.graph_def, ["logits"])
    (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
    given = {"model": f"graph:{tmp_path}/frozen.pb,preprocess=tf", "graph_inputs": None, "train": "@all"}
    found = run(config(folder, tmp_path / "run", **given))
    images = np.random.default_rng(1).standard_normal((5, *SHAPE)).astype(np.float32)
    expected = found.network(images, training=False).numpy()
    apply_delta(tmp_path / "frozen.pb", tmp_path / "run/trained.npz", tmp_path / "new.pb")
    outputs = {name: outputs_of(tmp_path / f"{name}.pb", images) for name in ("frozen", "new")}
    np.testing.assert_allclose(outputs["new"], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(outputs["frozen"] - expected).max() > 1e-3


def outputs_of(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    definition = v1.GraphDef.FromString(path.read_bytes())
    with tf.Graph().as_default(), v1.Session() as session:
        (logits,) = tf.graph_util.import_graph_def(definition, return_elements=["logits:0"], name="")
        found: np.ndarray = session.run(logits, {"x:0": images})
        return found
