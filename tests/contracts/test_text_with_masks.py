"""E1, E2, E4 and E5 for texts: an encoder whose padding is masked, and pairs of texts with token types."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import made_bert
import numpy as np
import pytest
import tensorflow as tf

from engine import FreezeProof, TrainStep, select
from engine.files import Npz
from engine.frostline.cuts import cut_evaluation, cut_step
from engine.frostline.line import FrostLine
from engine.frostline.watch import frozen_output_norms
from engine.models.bert import Bert, Config
from engine.selection import filters
from engine.selection.selection import Selection
from engine.selection.variables import name_variables
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator

LENGTH, CLASSES = 10, 3
CONFIG = Config(vocabulary=26, width=8, depth=2, heads=2, hidden=12, positions=LENGTH, classes=CLASSES)


def encoder(dtype: Any = tf.float32, **changes: Any) -> Bert:
    network = Bert(Config(**(vars(CONFIG) | changes)), dtype=dtype)
    rng = np.random.default_rng(0)
    for entry in name_variables(network):  # the default head is nearly zero
        entry.variable.assign(entry.variable + rng.standard_normal(entry.variable.shape) * 0.3)
    return network


def batch(seed: int, size: int = 7, *, pairs: bool = False) -> dict[str, Any]:
    """Texts of several lengths, with weights; an example in three has none."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, CONFIG.vocabulary, (size, LENGTH)).astype(np.int32)
    lengths = rng.integers(2, LENGTH + 1, size)
    tokens[np.arange(LENGTH) >= lengths[:, None]] = 0
    found: dict[str, Any] = {
        "tokens": tokens,
        "label": rng.integers(0, CLASSES, size),
        "weight": rng.random(size) * (np.arange(size) % 3 != 1),
        "seeds": rng.integers(0, 1 << 30, (size, 2), np.int32),
    }
    return found | ({"types": (np.arange(LENGTH) >= lengths[:, None] // 2).astype(np.int32)} if pairs else {})


def joined(variables: Any) -> np.ndarray:
    return np.concatenate([each.numpy().astype(np.float64).ravel() for each in variables])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def weights(selection: Selection) -> np.ndarray:
    return joined([entry.variable for entry in selection.trained])


@pytest.mark.parametrize(
    "train",
    [
        "@blocks[-1:] @embedding !@norm",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("@head", "@blocks[-1:] @head", "@norm @bias")),
    ],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_e1_frozen_variables_of_an_encoder_keep_every_bit(train: str) -> None:
    network = encoder(dropout=0.1, depth=1 if "@embedding" in train else 2)
    selection = select(network, train)
    rule = optimizers.AdamW(weight_decay=0.1, layer_decay=0.8, clip_norm=0.5, decay=filters.group("all"))
    step = TrainStep(losses.supervised_loss(network), rule, micro_batch_size=3)
    proof = FreezeProof.begin(selection)
    before = weights(selection)
    for number in range(3):
        step(selection, batch(number), learning_rate=0.05)
    assert proof.changed(selection) == []
    assert relative(weights(selection), before) > 1e-3


def train_in_parts(
    dtype: Any, micro: int | None, steps: int, *, pairs: bool, depth: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The weights after some steps, the last one short; and the first moments and losses."""
    network = encoder(dtype, dropout=0.2, depth=depth)
    selection = select(network, "@all")
    rule, remat = optimizers.AdamW(clip_norm=0.5), "none" if micro is None else "blocks"
    step = TrainStep(losses.supervised_loss(network), rule, micro_batch_size=micro, remat=remat)
    sizes = [4 if number and number == steps - 1 else 7 for number in range(steps)]
    given = [batch(number, size, pairs=pairs) for number, size in enumerate(sizes)]
    found = [float(step(selection, each, learning_rate=1e-3).loss) for each in given]
    slots = [next(iter(step.slots.values[entry.path].values())) for entry in selection.trained]
    return weights(selection), joined(slots), found


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_ops")
def test_e2_the_first_step_of_texts_in_micro_batches_is_that_of_one_batch() -> None:
    whole, parts = (train_in_parts(tf.float32, micro, 1, pairs=True, depth=1) for micro in (None, 3))
    assert relative(parts[1], whole[1]) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.usefixtures("deterministic_ops")
def test_e2_micro_batches_of_texts_are_one_batch(pairs: bool) -> None:
    """With dropout, weights, clipping, an uneven last part and blocks computed again; the tables train too."""
    whole, parts = (train_in_parts(tf.float64, micro, 10, pairs=pairs, depth=2) for micro in (None, 3))
    assert relative(parts[0], whole[0]) < 1e-10
    np.testing.assert_allclose(parts[2], whole[2], rtol=1e-10)


def train_cached(
    dtype: Any, steps: int, train: str, *, cached: bool, pairs: bool
) -> tuple[list[float], np.ndarray, np.ndarray, FrostLine | None]:
    """Losses, the gradient of the first step, the changes of the weights, and the line; cached: from other batches."""
    # a smaller frozen part would be computed again, not cached
    network = encoder(dtype, width=32, hidden=64, depth=2 if train == "@head" else 4)
    selection = select(network, train)
    step = TrainStep(losses.supervised_loss(network), optimizers.AdamW(), micro_batch_size=3)
    given: list[Mapping[str, Any]] = [batch(number, pairs=pairs) for number in range(steps)]
    line, start = None, weights(selection)
    if cached:
        found = cut_step(step, selection, given[0])
        assert isinstance(found, FrostLine), found
        line, names = found, found.inputs
        # a result of a function waits for each look-up in a table, which must not keep the tokens
        evaluator = Evaluator(losses.supervised_loss(network), watch=frozen_output_norms)
        assert cut_evaluation(evaluator, selection, line, given[0]) is None
        made = []
        for each in given:
            inputs = {name: tf.concat([each[name], each[name][:2]], 0) for name in names}  # another batch size
            stored = line.prefix(inputs if pairs else inputs["tokens"])
            rest = {name: value for name, value in each.items() if name not in names}
            made.append(rest | {t.key: value[:7] for t, value in zip(line.tensors, stored, strict=True)})
        given = made
    losses_found, gradient = [], None
    for each in given:
        losses_found.append(float(step(selection, each, learning_rate=1e-3).loss))
        if gradient is None:
            slots = [next(iter(step.slots.values[entry.path].values())) for entry in selection.trained]
            gradient = joined(slots)
    assert gradient is not None
    return losses_found, gradient, weights(selection) - start, line


@pytest.mark.parametrize(
    ("train", "pairs", "crossing", "steps"),
    [
        ("@head", False, {("float", (32,))}, 0),
        pytest.param("@head", False, {("float", (32,))}, 50, marks=pytest.mark.slow),
        pytest.param(
            "@blocks[-1:] @head", True, {("bool", (LENGTH,)), ("float", (LENGTH, 32))}, 50, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.usefixtures("deterministic_ops")
def test_e4_cached_texts_equal_uncached_ones(train: str, pairs: bool, crossing: set[Any], steps: int) -> None:
    """What crosses the line are the features of the tokens and the mask of the padding; for a head alone, their mean."""
    (cached, plain) = (train_cached(tf.float32, 1, train, cached=c, pairs=pairs) for c in (True, False))
    line = cached[3]
    assert line is not None
    assert {(tf.as_dtype(t.dtype).name.rstrip("0123456789"), tuple(t.shape)) for t in line.tensors} == crossing
    np.testing.assert_allclose(cached[0], plain[0], rtol=1e-6)
    assert relative(cached[1], plain[1]) < 1e-6
    if not steps:
        return
    (cached, plain) = (train_cached(tf.float64, steps, train, cached=c, pairs=pairs) for c in (True, False))
    np.testing.assert_allclose(cached[0], plain[0], rtol=1e-10)
    assert relative(cached[2], plain[2]) < 1e-10


def arrays(path: pathlib.Path) -> dict[str, bytes]:
    with Npz(path) as npz:
        return {name: npz.read(name).tobytes() for name in npz.names()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "killed"),
    [
        (["--train=@head", "--steps=3", "--cache=off", "--eval_every=3"], 2),
        pytest.param(
            [
                "--phase=name=head train=@head steps=3",
                "--phase=name=last train='@blocks[-1:] @head' steps=6",
                "--eval_every=4",
            ],
            5,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one phase", "two phases"],
)
def test_e5_a_resumed_run_on_texts_is_an_uninterrupted_one(
    tmp_path: pathlib.Path, call: Callable[..., tuple[int, str, str]], phases: list[str], killed: int
) -> None:
    """As if it had been killed after a checkpoint in the middle of an epoch and of a phase."""
    pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")
    folder = made_bert.make_folder(tmp_path / "tiny")
    made_bert.write_reviews(tmp_path / "reviews.tsv", 40)
    out, again = tmp_path / "run", tmp_path / "again"
    given = [
        f"--model=bert:{folder},dropout=0.1", f"--data=text:{tmp_path}/reviews.tsv", "--batch_size=8", "--keep=9",
        "--checkpoint_every=1", *phases,
    ]  # fmt: skip
    code, _, error = call(*given, f"--out={out}")
    assert code == 0, error
    shutil.copytree(out, again)
    steps = sorted((again / "checkpoints").glob("step-*.npz"))
    for each in (*steps[killed:], again / "run.json", again / "trained.npz"):
        each.unlink()
    code, printed, error = call("--resume", f"--out={again}")
    assert code == 0, printed + error
    assert arrays(again / "checkpoints" / steps[-1].name) == arrays(out / "checkpoints" / steps[-1].name)
    one, other = (json.loads((each / "run.json").read_text()) for each in (out, again))
    assert one["final"] == other["final"]
    assert one["freeze_proof"]["verified"]
