"""E1, E2, E4 and E5 for the network of a SavedModel: it trains as exactly as the engine's own."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import saved_trunks as saved
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.models import build_model
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import finetune
from engine.recipes.listener import Listener
from engine.selection import filters
from engine.selection.proof import digests
from engine.training import losses, optimizers
from engine.training.losses import Loss
from engine.training.optimizer_state import Slots

CLASSES = 4
KINDS = {"plain": {}, "fused": {"fused": True}, "dropout": {"dropout": 0.3}}
SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or pathlib.Path(__file__).resolve().parents[3] / "shared")
ADAMW = optimizers.AdamW(weight_decay=0.1, clip_norm=0.5, decay=filters.group("all"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        kind: saved.save(saved.Trunk(**given), tmp_path_factory.mktemp("saved") / kind)  # type: ignore[arg-type]
        for kind, given in KINDS.items()
    }


def network(folder: str, dtype: Any = tf.float32) -> Any:
    spec = f"savedmodel:{folder},preprocess=tf"
    return build_model(spec, image_shape=saved.SHAPE, outputs=CLASSES, dtype=dtype).network


def batch(seed: int, size: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, *saved.SHAPE)),
        "label": rng.integers(0, CLASSES, size),
        "weight": rng.random(size),
        "seeds": rng.integers(0, 1 << 30, (size, 2), np.int32),
    }


def weighted(model: Any) -> Any:
    """A classifier's loss, and the size of its outputs as a second term without weights."""

    def loss_fn(given: Mapping[str, Any], *, training: bool, seeds: Any) -> Loss:
        logits = model(given["image"], training=training, seeds=seeds)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=given["label"], logits=logits)
        return Loss({"label": (values, given["weight"]), "size": (tf.reduce_sum(tf.square(logits), -1), None)})

    return loss_fn


MOVES = [  # kind, filter, the scopes whose statistics move
    ("fused", "high/.* @head @stats", ("high/bn",)),
    pytest.param("plain", "head/.*", (), marks=pytest.mark.slow),
    pytest.param("dropout", "high/.* @head @stats", ("high/bn",), marks=pytest.mark.slow),
    pytest.param("plain", "high/.* dense/.* @head", (), marks=pytest.mark.slow),
    pytest.param("plain", "high/.* dense/.* @head @stats", ("high/bn",), marks=pytest.mark.slow),
    pytest.param("dropout", "@norm @head", (), marks=pytest.mark.slow),
    pytest.param("fused", "@all @stats", ("low/bn", "high/bn"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "text", "moving"), MOVES)
@pytest.mark.usefixtures("deterministic_ops")
def test_e1_frozen_variables_and_statistics_of_a_saved_trunk_keep_every_bit(
    folders: dict[str, str], kind: str, text: str, moving: tuple[str, ...]
) -> None:
    model = network(folders[kind])
    selection = select(model, text, statistics="frozen")
    assert {entry.layer for entry in selection.moving} == set(moving)
    before, proof = digests(selection.variables), FreezeProof.begin(selection)
    step = TrainStep(losses.supervised_loss(model), ADAMW)
    for seed in range(3):
        step(selection, batch(seed), learning_rate=0.05)
    after = digests(selection.variables)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {entry.path for entry in (*selection.trained, *selection.moving)}
    assert proof.changed(selection) == []


FIRST, TRAJECTORY = (tf.float32, 1, optimizers.Momentum()), (tf.float64, 10, ADAMW)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        pytest.param("high/.* @head", (FIRST,), marks=pytest.mark.slow),
        *(pytest.param(text, (FIRST, TRAJECTORY), marks=pytest.mark.slow) for text in ("@head", "high/.* @head")),
    ],
)
def test_e2_micro_batches_of_a_saved_trunk_are_one_batch(folders: dict[str, str], text: str, runs: Any) -> None:
    found: dict[tuple[str, int | None], np.ndarray] = {}
    for dtype, count, optimizer in runs:
        model = network(folders["dropout"], dtype)
        selection = select(model, text, statistics="frozen")
        start = [entry.variable.numpy() for entry in selection.trained]
        for size in (None, 3):
            for entry, value in zip(selection.trained, start, strict=True):
                entry.variable.assign(value)
            step = TrainStep(weighted(model), optimizer, micro_batch_size=size)
            step.slots = Slots()
            for seed in range(count):
                step(selection, batch(seed, 7 if seed < 9 else 4), learning_rate=0.01)
            values = [next(iter(step.slots.values[e.path].values())) for e in selection.trained]
            values = values if count == 1 else [entry.variable for entry in selection.trained]
            found[dtype.name, size] = np.concatenate([np.asarray(each).ravel() for each in values])
    for name, bound in (("float32", 5e-6), ("float64", 1e-10))[: len(runs)]:
        one, parts = found[name, None], found[name, 3]
        assert np.linalg.norm(parts - one) <= bound * np.linalg.norm(one)


TWELVE = (tf.float64, 12, 1e-10)


@pytest.mark.parametrize(
    ("text", "below", "runs"),
    [
        ("@head", ["high/conv/kernel", "low/conv/kernel"], [(tf.float32, 1, 1e-6)]),
        pytest.param("@head", ["high/conv/kernel"], [TWELVE], marks=pytest.mark.slow),
        pytest.param("high/.* @head", ["low/bn/moving_mean", "low/conv/kernel"], [TWELVE], marks=pytest.mark.slow),
        pytest.param("high/bn/.* @head", ["high/conv/kernel", "low/conv/kernel"], [TWELVE], marks=pytest.mark.slow),
    ],
)
def test_e4_cached_features_of_a_saved_trunk_train_as_its_images_do(
    folders: dict[str, str], text: str, below: list[str], runs: list[Any]
) -> None:
    for dtype, steps, bound in runs:
        results = []
        for cached in (False, True):
            model = network(folders["plain"], dtype)
            selection, loss_fn = select(model, text, statistics="frozen"), losses.supervised_loss(model)
            step = TrainStep(loss_fn, optimizers.Momentum())
            given = [
                batch(seed) | {"image": batch(seed)["image"].astype(dtype.as_numpy_dtype)} for seed in range(steps)
            ]
            line = cut_step(step, selection, given[0])
            assert isinstance(line, FrostLine), line
            assert set(below) <= set(line.frozen_below)
            fed = [line.replace_images(each) if cached else each for each in given]
            found = [float(step(selection, each, learning_rate=0.01).loss) for each in fed]
            results.append([*found, *np.concatenate([e.variable.numpy().ravel() for e in selection.trained])])
        one, other = map(np.asarray, results)
        assert np.linalg.norm(other - one) <= bound * np.linalg.norm(one)


@pytest.mark.slow
def test_e4_a_real_saved_network_trains_its_head_from_the_cache_as_the_same_weights_in_keras_do() -> None:
    folder = SHARED / "models/savedmodel_mobilenetv2/module"
    if not folder.exists():
        pytest.skip("models/savedmodel_mobilenetv2 is neither in $FROSTLINE_SHARED nor in ../shared")
    given: dict[str, Any] = {"image_shape": (160, 160, 3), "outputs": CLASSES, "head": "gap", "seed": 3}
    images = np.random.default_rng(0).integers(0, 256, (5, 160, 160, 3), np.uint8)
    labelled = {name: array[:5] for name, array in batch(0).items() if name != "image"}
    values: dict[str, np.ndarray] = {}  # of the SavedModel, by their paths in the Keras model
    found = {}
    for spec, cached in (
        (f"savedmodel:{folder},preprocess=tf", False),
        (f"savedmodel:{folder},preprocess=tf", True),
        ("keras:MobileNetV2", False),
    ):
        model = build_model(spec, **given)
        selection = select(model.network, "@head", statistics="frozen")
        own = {entry.path.removeprefix("MobileNetV2/"): entry.variable for entry in selection.variables}
        if "keras" in spec:
            assert own.keys() == values.keys()
            assert len(own) == 262
            for path, variable in own.items():
                variable.assign(values[path])
        else:
            values = {path: variable.numpy() for path, variable in own.items()}
        step = TrainStep(losses.supervised_loss(model.network), optimizers.Momentum())
        fed: Any = labelled | {"image": model.normalise(images)}
        if cached:
            line = cut_step(step, selection, fed)
            assert isinstance(line, FrostLine), line
            assert [tuple(tensor.shape) for tensor in line.tensors] == [(1280,)]
            fed = line.replace_images(fed)
        loss = float(step(selection, fed, learning_rate=0.01).loss)
        gradient = [next(iter(step.slots.values[entry.path].values())).numpy().ravel() for entry in selection.trained]
        found[spec.partition(":")[0], cached] = loss, np.concatenate(gradient)
    loss, gradient = found.pop(("keras", False))
    assert np.linalg.norm(gradient) > 0.1
    for other, of in found.values():
        assert other == pytest.approx(loss, rel=1e-5)
        assert np.linalg.norm(of - gradient) <= 1e-5 * np.linalg.norm(gradient)


class StopAfter(Listener):
    """Stops a run after some steps."""

    stopped_by = "the test"

    def __init__(self, steps: int | None) -> None:
        self.left = steps

    def handle(self, event: Any) -> None:
        if self.left is not None and event.kind == "step":
            self.left -= 1

    def should_stop(self) -> bool:
        return self.left is not None and self.left <= 0


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    arrays = {
        name: value
        for part, count in (("train", 24), ("test", 8))
        for name, value in (
            (f"{part}_images", rng.integers(0, 256, (count, *saved.SHAPE), np.uint8)),
            (f"{part}_labels", rng.integers(0, CLASSES, count)),
        )
    }
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


HEAD, HIGH = "name=head train=@head steps=3", "name=high train='high/.* @head @stats' steps=5"


@pytest.mark.slow
@pytest.mark.parametrize(("phases", "stops"), [((HIGH,), (2, None)), ((HEAD, HIGH), (2, 3, None))])
@pytest.mark.usefixtures("deterministic_ops")
def test_e5_a_run_of_a_saved_trunk_that_stops_and_resumes_has_the_same_bits(
    folders: dict[str, str],
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    phases: tuple[str, ...],
    stops: tuple[int | None, ...],
) -> None:
    from engine.files import Npz
    from engine.runs import picture, records

    monkeypatch.setattr(records, "draw_curves", lambda *_: None)
    monkeypatch.setattr(picture, "draw", lambda *_: None)
    given: dict[str, Any] = {
        "model": f"savedmodel:{folders['dropout']},preprocess=tf",
        "data": f"npz:{data}",
        "phase": phases,
        "batch_size": 8,
        "checkpoint_every": 2,
    }
    found = []
    for name, ends in (("whole", (None,)), ("parts", stops)):
        for end in ends:
            config = FinetuneConfig(**given, out=str(tmp_path / name), resume=end != ends[0])
            finetune(config, listener=StopAfter(end))
        with Npz(tmp_path / name / "trained.npz") as npz:
            found.append({key: npz.read(key).tobytes() for key in npz.names()})
    assert found[0] == found[1]
    assert {"high/bn/moving_mean", "high/conv/kernel", "head/logits/kernel"} <= found[0].keys()
    assert not any(key.startswith("low/") for key in found[0])
