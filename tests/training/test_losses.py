"""Losses: exact against numpy, one value per example, regularisers for the selection alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.selection.variables import name_variables
from engine.training import optimizers
from engine.training.losses import Loss, LossError, choose_terms, sum_regulariser, supervised_loss, weighted_sums

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((5, 4)) * 3
CLASSES = np.array([0, 3, 1, 1, 2])
MULTI = RNG.integers(0, 2, (5, 4))
EXACT = 1e-13  # float64 against float64: a few roundings of values below 10


class Outputs(tf.Module):
    """A model whose outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = tf.Variable(tf.zeros([], tf.float64), name="shift")

    def __call__(self, images: Any, *, training: bool, seeds: Any) -> Any:
        return tf.convert_to_tensor(images) + self.shift


def run(kind: str, outputs: Any, labels: Any, *, weight: Any = None, smoothing: float = 0.0) -> Loss:
    batch = {"image": outputs, "label": labels} | ({} if weight is None else {"weight": weight})
    return supervised_loss(Outputs(), kind, label_smoothing=smoothing)(batch, training=True, seeds=None)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


# --- values ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_softmax_is_the_cross_entropy_with_the_smoothed_targets(smoothing: float) -> None:
    targets = np.eye(4)[CLASSES] * (1 - smoothing) + smoothing / 4
    values, weights = run("softmax", LOGITS, CLASSES, smoothing=smoothing).terms["softmax"]
    np.testing.assert_allclose(values, -(targets * log_softmax(LOGITS)).sum(-1), atol=EXACT, rtol=0)
    assert weights is None


def test_softmax_accuracy_is_whether_the_largest_logit_is_the_label() -> None:
    labels = np.argmax(LOGITS, -1)
    labels[:2] = (labels[:2] + 1) % 4
    accuracy, _ = run("softmax", LOGITS, labels).metrics["accuracy"]
    np.testing.assert_array_equal(accuracy, [0, 0, 1, 1, 1])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
def test_class_labels_of_any_number_type_give_the_same_values(dtype: Any) -> None:
    expected, _ = run("softmax", LOGITS, CLASSES).terms["softmax"]
    values, _ = run("softmax", LOGITS, CLASSES.astype(dtype)).terms["softmax"]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_with_one_output_takes_a_vector_of_labels(smoothing: float) -> None:
    logits, labels = LOGITS[:, :1], np.array([0, 1, 1, 0, 1])
    loss = run("sigmoid", logits, labels, smoothing=smoothing)
    targets = labels * (1 - smoothing) + smoothing / 2
    np.testing.assert_allclose(loss.terms["sigmoid"][0], cross_entropy(logits[:, 0], targets), atol=EXACT, rtol=0)
    np.testing.assert_array_equal(loss.metrics["accuracy"][0], (logits[:, 0] > 0) == (labels == 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_with_many_labels_is_their_mean_per_example(smoothing: float) -> None:
    loss = run("sigmoid", LOGITS, MULTI, smoothing=smoothing)
    targets = MULTI * (1 - smoothing) + smoothing / 2
    np.testing.assert_allclose(loss.terms["sigmoid"][0], cross_entropy(LOGITS, targets).mean(-1), atol=EXACT, rtol=0)
    np.testing.assert_allclose(loss.metrics["accuracy"][0], ((LOGITS > 0) == (MULTI == 1)).mean(-1), atol=EXACT, rtol=0)


def test_mse_is_the_mean_square_per_example_and_has_no_accuracy() -> None:
    targets = RNG.standard_normal((5, 4))
    loss = run("mse", LOGITS, targets)
    np.testing.assert_allclose(loss.terms["mse"][0], ((LOGITS - targets) ** 2).mean(-1), atol=1e-12, rtol=1e-14)
    assert loss.metrics == {}
    one = run("mse", LOGITS[:, :1], targets[:, 0])
    np.testing.assert_allclose(one.terms["mse"][0], (LOGITS[:, 0] - targets[:, 0]) ** 2, atol=1e-12, rtol=1e-14)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "mse"])
def test_values_stay_finite_for_huge_logits(kind: str) -> None:
    labels = CLASSES if kind == "softmax" else MULTI
    values, _ = run(kind, LOGITS * 1e5, labels).terms[kind]
    assert np.isfinite(values.numpy()).all()


def test_weights_of_the_batch_weigh_terms_and_metrics() -> None:
    weight = np.array([0.0, 1.0, 2.0, 0.5, 3.0])
    loss = run("softmax", LOGITS, CLASSES, weight=weight)
    unweighted = run("softmax", LOGITS, CLASSES)
    total, mass = weighted_sums(loss.terms)["softmax"]
    np.testing.assert_allclose(total, (unweighted.terms["softmax"][0].numpy() * weight).sum(), rtol=1e-14)
    assert float(mass) == 6.5
    hits, mass = weighted_sums(loss.metrics)["accuracy"]
    np.testing.assert_allclose(hits, (unweighted.metrics["accuracy"][0].numpy() * weight).sum(), rtol=1e-14)
    assert float(mass) == 6.5


# --- sums ---


def test_a_term_without_weights_counts_its_examples() -> None:
    total, mass = weighted_sums({"a": (tf.constant([1.0, 2.0, 4.0], tf.float64), None)})["a"]
    assert (float(total), float(mass)) == (7.0, 3.0)
    assert total.dtype == mass.dtype == tf.float64


def test_sums_of_parts_add_up_to_the_sum_of_the_whole() -> None:
    values, weights = tf.constant([1.0, 2.0, 4.0, 8.0]), np.array([1, 0, 2, 3])  # small whole numbers: exact
    whole = weighted_sums({"a": (values, weights)})["a"]
    parts = [weighted_sums({"a": (values[i:j], weights[i:j])})["a"] for i, j in ((0, 1), (1, 4))]
    assert [float(n) for n in whole] == [float(sum(n)) for n in zip(*parts, strict=True)] == [33.0, 6.0]


def test_two_terms_are_each_divided_by_their_own_weights() -> None:
    model = Outputs()
    values, weights = np.array([1.0, 2.0, 6.0]), np.array([1.0, 0.0, 3.0])

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Loss:
        shifted = batch["x"] + model.shift
        return Loss(
            terms={"first": (shifted, None), "second": (2 * shifted, batch["w"])},
            regulariser=10.0 * tf.stop_gradient(model.shift) + 0.5,
            metrics={"mean": (batch["x"], batch["w"])},
        )

    step = TrainStep(loss_fn, optimizers.SGD())(select(model, "@all"), {"x": values, "w": weights}, learning_rate=0.25)
    assert {name: float(value) for name, value in step.terms.items()} == {"first": 3.0, "second": 9.5}
    assert float(step.loss) == 3.0 + 9.5 + 0.5
    assert float(step.metrics["mean"]) == 4.75
    assert float(model.shift) == -0.25 * 3.0  # the gradient is 1 of the first term and 2 of the second


def test_a_term_whose_weights_are_all_zero_counts_nothing() -> None:
    model = Outputs()

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Loss:
        shifted = batch["x"] + model.shift
        return Loss(terms={"live": (shifted, None), "dead": (shifted, tf.zeros_like(shifted))})

    step = TrainStep(loss_fn, optimizers.SGD())(select(model, "@all"), {"x": np.array([2.0])}, learning_rate=1.0)
    assert float(step.loss) == 2.0
    assert float(model.shift) == -1.0


@pytest.mark.parametrize("values", [3.0, [[1.0, 2.0]]])
def test_values_that_are_no_vector_are_refused(values: Any) -> None:
    with pytest.raises(LossError, match=r"term 'a': values have shape .*; expected one value per example, \[B\]"):
        weighted_sums({"a": (values, None)})


def test_weights_of_another_shape_are_refused() -> None:
    for weights in ([1.0, 2.0], [[1.0], [2.0], [3.0]], 1.0):
        with pytest.raises(LossError, match="term 'a': weights have shape"):
            weighted_sums({"a": ([1.0, 2.0, 3.0], weights)})


# --- regularisers ---


def test_of_a_regulariser_by_path_only_the_selection_enters() -> None:
    loss = Loss(terms={}, regulariser={"a/kernel": 1.0, "b/kernel": 2.0, "": 4.0})
    assert float(sum_regulariser(loss, frozenset({"b/kernel"}), tf.float64)) == 6.0
    assert float(sum_regulariser(loss, frozenset({"a/kernel", "b/kernel"}), tf.float64)) == 7.0
    assert float(sum_regulariser(loss, frozenset(), tf.float64)) == 4.0


def test_a_scalar_regulariser_enters_as_it_is_and_none_is_zero() -> None:
    assert float(sum_regulariser(Loss({}, 3), frozenset(), tf.float64)) == 3.0
    assert float(sum_regulariser(Loss({}), frozenset({"a"}), tf.float32)) == 0.0
    assert float(sum_regulariser(Loss({}, {"a": 1.0}), frozenset({"b"}), tf.float32)) == 0.0
    assert sum_regulariser(Loss({}, np.float32(1)), frozenset(), tf.float64).dtype == tf.float64


def keras_model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(4, activation="relu", kernel_regularizer=keras.regularizers.L2(0.25), name="down"),
            keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L1(0.5), name="top"),
        ]
    )


def keras_batch() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"image": rng.standard_normal((6, 3), np.float32), "label": rng.integers(0, 2, 6)}


def test_keras_weight_regularisers_come_by_variable_path() -> None:
    model = keras_model()
    loss = supervised_loss(model)(keras_batch(), training=True, seeds=None)
    paths = name_variables(model).by_path()
    expected = {
        "down/kernel": 0.25 * np.square(paths["down/kernel"].variable.numpy()).sum(),
        "top/kernel": 0.5 * np.abs(paths["top/kernel"].variable.numpy()).sum(),
    }
    assert set(loss.regulariser) == set(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(loss.regulariser[path], value, rtol=1e-6)  # float32 sums of up to 12 squares
    np.testing.assert_allclose(sum(expected.values()), float(sum(model.losses)), rtol=1e-6)


def test_a_regulariser_of_a_frozen_keras_layer_is_not_in_the_loss() -> None:
    model = keras_model()
    step = TrainStep(supervised_loss(model), optimizers.SGD())(
        select(model, "top/.*"), keras_batch(), learning_rate=1e-9
    )
    penalty = 0.5 * np.abs(model.get_layer("top").kernel.numpy()).sum()
    # float32: the sum of a loss and a penalty of order 1, each rounded to 6e-8
    np.testing.assert_allclose(float(step.loss) - float(step.terms["softmax"]), penalty, atol=1e-6)


def test_a_keras_activity_regulariser_enters_once_and_does_not_pile_up() -> None:
    inputs = keras.Input([3])
    hidden = keras.layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.5), name="down")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="top")(hidden))
    loss_fn, batch = supervised_loss(model), keras_batch()
    for _ in range(2):
        loss = loss_fn(batch, training=True, seeds=None)
        activity = model.get_layer("down")(batch["image"]).numpy()
        expected = 0.5 * np.square(activity).sum() / len(activity)  # Keras divides by the batch size
        assert set(loss.regulariser) == {""}
        np.testing.assert_allclose(loss.regulariser[""], expected, rtol=1e-6)
    selection = select(model, "top/.*")
    step = TrainStep(loss_fn, optimizers.SGD())(selection, batch, learning_rate=1e-9)
    np.testing.assert_allclose(float(step.loss) - float(step.terms["softmax"]), expected, rtol=1e-6, atol=1e-6)


def test_a_keras_model_without_regularisers_has_none() -> None:
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    assert supervised_loss(model)(keras_batch(), training=True, seeds=None).regulariser is None


# --- errors ---


@pytest.mark.parametrize(
    ("kind", "smoothing", "message"),
    [
        (
            "softmx",
            0.0,
            "loss='softmx': expected one of softmax, sigmoid, mse, focal, dice, softmax+dice, centers, py:module:name; nearest: softmax",
        ),
        ("softmax", 1.0, "label_smoothing=1.0: expected a number of at least 0 and below 1"),
        ("softmax", -0.1, "label_smoothing=-0.1: expected a number of at least 0 and below 1"),
        ("sigmoid", float("nan"), "label_smoothing=nan: expected a number of at least 0 and below 1"),
        ("mse", 0.1, "label_smoothing=0.1: the loss mse has no classes to smooth over"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused_with_the_rule(kind: str, smoothing: float, message: str) -> None:
    with pytest.raises(LossError) as caught:
        supervised_loss(Outputs(), kind, label_smoothing=smoothing)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "outputs", "labels", "message"),
    [
        ("softmax", LOGITS[:, :1], CLASSES, r"shape \(5, 1\); expected \[B, classes >= 2\]"),
        ("softmax", LOGITS[:, 0], CLASSES, r"shape \(5,\); expected \[B, classes >= 2\]"),
        ("sigmoid", LOGITS, CLASSES, r"labels have shape \(5, 1\), but the model's outputs have \(5, 4\)"),
        ("sigmoid", LOGITS, MULTI[:, :3], r"labels have shape \(5, 3\)"),
        ("mse", LOGITS, CLASSES, "expected one output per label column"),
        ("mse", LOGITS[:, 0], CLASSES, "expected one output per label column"),
    ],
)
def test_outputs_that_do_not_suit_the_labels_are_refused(kind: str, outputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        run(kind, outputs, labels)


# --- focal, class weights, losses of the user's own ---


def focal_of(p: np.ndarray, gamma: float) -> np.ndarray:
    return -((1 - p) ** gamma) * np.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_the_papers_formula_for_classes_and_for_labels(gamma: float) -> None:
    p = np.exp(log_softmax(LOGITS))[np.arange(5), CLASSES]
    values, _ = run(f"focal gamma={gamma}", LOGITS, CLASSES).terms["focal"]
    np.testing.assert_allclose(values, focal_of(p, gamma), atol=1e-12, rtol=1e-12)
    positive = 1 / (1 + np.exp(-LOGITS))
    p, alpha = np.where(MULTI == 1, positive, 1 - positive), np.where(MULTI == 1, 0.25, 0.75)
    values, _ = run(f"focal gamma={gamma} alpha=0.25", LOGITS, MULTI.astype(np.float64)).terms["focal"]
    np.testing.assert_allclose(values, (alpha * focal_of(p, gamma)).mean(-1), atol=1e-12, rtol=1e-12)


def test_focal_of_two_classes_is_that_of_their_one_label() -> None:
    labels, logits = np.array([0, 1, 1, 0, 1]), LOGITS[:, :2]
    two = run("focal alpha=0.25", logits, labels)
    one = run("focal alpha=0.25", logits[:, 1:] - logits[:, :1], labels)
    np.testing.assert_allclose(two.terms["focal"][0], one.terms["focal"][0], rtol=1e-12)
    np.testing.assert_array_equal(two.metrics["accuracy"][0], one.metrics["accuracy"][0])
    with pytest.raises(LossError, match=r"alpha=0.25 is the weight of class 1 of two, but there are 4 classes"):
        run("focal alpha=0.25", LOGITS, CLASSES)


@pytest.mark.parametrize("labels", [CLASSES, MULTI.astype(np.float64)])
def test_focal_and_its_gradient_stay_finite_for_huge_logits(labels: Any) -> None:
    logits = tf.constant(np.concatenate([LOGITS[:4] * 1e4, np.zeros([1, 4])]))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values, _ = run("focal gamma=0.5", logits, labels).terms["focal"]
    assert np.isfinite(values.numpy()).all()
    assert np.isfinite(tape.gradient(values, logits).numpy()).all()


def test_class_weights_weigh_the_loss_and_not_the_accuracy() -> None:
    weight, classes = np.array([1.0, 0.0, 2.0, 0.5, 3.0]), (1.0, 4.0, 0.5, 0.0)
    batch = {"image": LOGITS, "label": CLASSES, "weight": weight}
    for kind in ("softmax", "focal"):
        loss_fn = supervised_loss(Outputs(), kind, class_weights={"": classes})
        loss = loss_fn(batch, training=True, seeds=None)
        np.testing.assert_array_equal(loss.terms[kind][1], weight * np.array(classes)[CLASSES])
        np.testing.assert_array_equal(loss.metrics["accuracy"][1], weight)
    one = supervised_loss(Outputs(), "sigmoid", class_weights={"": (0.25, 2.0)})
    loss = one({"image": LOGITS[:, :1], "label": np.array([0, 1, 1, 0, 1])}, training=True, seeds=None)
    np.testing.assert_array_equal(loss.terms["sigmoid"][1], [0.25, 2.0, 2.0, 0.25, 2.0])
    with pytest.raises(LossError, match="but there are 4 labels"):
        one({"image": LOGITS, "label": MULTI}, training=True, seeds=None)
    with pytest.raises(LossError, match="the loss mse has no such option"):
        supervised_loss(Outputs(), "mse", class_weights={"": (1.0, 2.0)})
    with pytest.raises(LossError, match=r"expected their values; Task.open finds them"):
        supervised_loss(Outputs(), "softmax class_weights=balanced")


OWN = """
import tensorflow as tf
from engine.training.loss_kinds import Values

def huber(outputs, labels, weights, *, delta=1.0):
    error = tf.abs(outputs[:, 0] - tf.cast(labels, outputs.dtype))
    return tf.where(error < delta, error**2 / 2, delta * (error - delta / 2))

def with_metric(outputs, labels, weights):
    return Values(huber(outputs, labels, weights), weights, {"size": (outputs[:, 0], weights)})

def mean(outputs, labels, weights):
    return tf.reduce_mean(outputs)

def broken(outputs, labels, weights):
    return outputs @ outputs
"""


@pytest.fixture
def own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_losses_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "py:own_losses_of_a_test"


def test_a_loss_of_the_users_own_gives_values_or_also_weights_and_metrics(own: str) -> None:
    labels = np.array([0.0, np.nan, 9.0, 1.0, 1.0])
    weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    error = np.abs(LOGITS[:, 0] - np.nan_to_num(labels))
    for name in ("huber delta=1", "with_metric"):
        loss = run(f"{own}:{name}", LOGITS, labels, weight=weight)
        values, weights = loss.terms[name.split()[0]]
        np.testing.assert_allclose(values, np.where(error < 1, error**2 / 2, error - 0.5), rtol=1e-12)
        np.testing.assert_array_equal(weights, weight)
    np.testing.assert_array_equal(loss.metrics["size"][0], LOGITS[:, 0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hubber", "loss='py:.*hubber': .* has no 'hubber'; nearest: huber"),
        ("huber gamma=2", r"it cannot be called as function\(outputs, labels, weights, gamma=...\)"),
        ("mean", r"it returned values of shape \(\); expected one value for each example, \[B\], not their mean"),
        ("broken", "it raised InvalidArgumentError"),
    ],
)
def test_what_is_wrong_in_a_loss_of_the_users_own_is_told(own: str, name: str, message: str) -> None:
    with pytest.raises(LossError, match=message):
        run(f"{own}:{name}", LOGITS, CLASSES)


# --- several outputs ---


class Two(tf.Module):
    def __call__(self, images: Any) -> Any:
        outputs = tf.convert_to_tensor(images)
        return {"species": outputs, "age": outputs[:, :1]}


def two(kind: str = "species=softmax, age=mse weight=0.5", **more: Any) -> Loss:
    age = np.array([0.5, np.nan, 1.0, 0.0, np.nan])
    batch = {"image": LOGITS, "label/species": CLASSES, "label/age": age, "weight/age": np.isfinite(age) * 1.0}
    return supervised_loss(Two(), kind)(batch | more, training=True, seeds=None)


def test_each_output_has_a_term_with_its_own_labels_and_weights() -> None:
    loss = two()
    assert list(loss.terms) == ["species", "age"]
    assert list(loss.metrics) == ["accuracy/species"]
    single = run("softmax", LOGITS, CLASSES)
    np.testing.assert_array_equal(loss.terms["species"][0], single.terms["softmax"][0])
    np.testing.assert_array_equal(loss.metrics["accuracy/species"][0], single.metrics["accuracy"][0])
    values, weights = loss.terms["age"]
    np.testing.assert_array_equal(weights, [1, 0, 1, 1, 0])
    np.testing.assert_allclose(values, 0.5 * (LOGITS[:, 0] - [0.5, 0.0, 1.0, 0.0, 0.0]) ** 2, rtol=1e-14)


def test_the_weight_of_an_example_weighs_all_its_labels() -> None:
    loss = two(weight=np.array([2.0, 1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(loss.terms["species"][1], [2, 1, 0, 1, 1])
    np.testing.assert_array_equal(loss.terms["age"][1], [2, 0, 0, 1, 0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "softmax",
            "the network has several outputs: .*species and age; name the loss of each, as in 'species=softmax, age",
        ),
        ("species=softmax", "no loss names the output age; add one, as in '..., age=softmax'"),
        ("species=softmax, aeg=mse", "the network has no output aeg; it has species and age"),
    ],
)
def test_outputs_and_losses_must_have_the_same_names(kind: str, message: str) -> None:
    with pytest.raises(LossError, match=message):
        two(kind)


def test_a_network_with_one_output_cannot_have_a_loss_by_name() -> None:
    with pytest.raises(
        LossError, match=r"the network returns a tensor .*; expected tensors by name, a dict of species"
    ):
        run("species=softmax", LOGITS, CLASSES)


def test_terms_that_do_not_count_leave_with_their_metrics() -> None:
    chosen = choose_terms(two(), ("age",))
    assert (list(chosen.terms), list(chosen.metrics)) == (["age"], [])
    with pytest.raises(LossError, match="losses=eye: the loss has no term 'eye'; it has species, age"):
        choose_terms(two(), ("eye",))
