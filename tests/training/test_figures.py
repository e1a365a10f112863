"""The metrics by name: hand-computed values, and those of scikit-learn, whatever the batches and the weights."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine.training.figures import build_metric, build_metrics, import_metric
from engine.training.gathered import Gathered
from engine.training.metric import measure_metrics, measure_outputs
from engine.training.metric_names import METRICS, MetricError, check_fits, parse_metrics

NAN = float("nan")
# those of pixels and boxes have tests of their own
OF_EXAMPLES = [name for name, facts in METRICS.items() if set(facts.kinds) & {"sigmoid", "mse"}]


def compute(
    name: str, kind: str, outputs: Any, labels: Any, weights: Any = None, *, sizes: Sequence[int] | None = None
) -> Any:
    """The figure of a metric, as an evaluator makes it, of batches of these sizes."""
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    metric = build_metric(name, kind=kind, outputs=outputs.shape[1])
    gathered, start = Gathered(alone=True), 0
    for size in sizes or [len(outputs)]:
        at = slice(start, start + size)
        weight = None if weights is None else tf.constant(weights[at])
        found = measure_metrics([metric], tf.constant(outputs[at]), tf.constant(labels[at]), weight)
        gathered.add({key: tensors for key, (_, tensors) in found.items()}, {name: metric})
        start += size
    return Gathered.finalise([gathered], {name: metric})[name]


# three classes; the third is never predicted
LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [3.0, 0.0, 1.0], [0.0, 2.0, 1.0]], np.float32)
CLASSES = np.array([0, 1, 1, 2])
BY_HAND: dict[str, tuple[str, Any, Any, Any, Any]] = {
    "accuracy": ("softmax", LOGITS, CLASSES, None, 0.5),
    "balanced_accuracy": ("softmax", LOGITS, CLASSES, None, (1 + 0.5 + 0) / 3),
    "precision": ("softmax", LOGITS, CLASSES, None, (0.5 + 0.5 + 0) / 3),
    "recall": ("softmax", LOGITS, CLASSES, None, (1 + 0.5 + 0) / 3),
    "f1": ("softmax", LOGITS, CLASSES, None, (2 / 3 + 0.5 + 0) / 3),
    "top2": ("softmax", LOGITS, CLASSES, None, 0.75),
    "confusion": ("softmax", LOGITS, CLASSES, None, [[1, 0, 0], [1, 1, 0], [0, 1, 0]]),
    "auc": ("sigmoid", [[1.0], [2.0], [2.0], [3.0]], [0.0, 1.0, 0.0, 1.0], None, 0.875),
    "mae": ("mse", [[1.0], [2.0]], [0.0, 4.0], None, 1.5),
    "mse": ("mse", [[1.0], [2.0]], [0.0, 4.0], [1.0, 3.0], 13 / 4),
    "rmse": ("mse", [[1.0, 3.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]], None, (1 + np.sqrt(25 / 2)) / 2),
    "r2": ("mse", [[1.0], [2.0], [3.0]], [1.0, 2.0, 6.0], None, 1 - 9 / 14),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_metric_has_the_value_that_is_computed_by_hand(name: str) -> None:
    kind, outputs, labels, weights, expected = BY_HAND[name]
    np.testing.assert_allclose(compute(name, kind, outputs, labels, weights), expected, rtol=0, atol=1e-15)


def test_every_metric_is_computed_by_hand_once() -> None:
    assert {name if name != "top2" else "top5" for name in BY_HAND} == {*OF_EXAMPLES, "top5"}


def test_equal_outputs_rank_lower_classes_first() -> None:
    outputs = np.ones((3, 3), np.float32)
    assert [compute(f"top{count}", "softmax", outputs, [0, 1, 2]) for count in (1, 2)] == [1 / 3, 2 / 3]


def test_an_example_of_weight_0_counts_nowhere_whatever_its_label() -> None:
    rng = np.random.default_rng(0)
    present, weights = rng.random(40) < 0.7, rng.random(40).astype(np.float32)
    weights[~present] = 0.0
    for kind, classes in (("softmax", 4), ("sigmoid", 1), ("sigmoid", 3), ("mse", 2)):
        outputs = rng.standard_normal((40, classes)).astype(np.float32)
        labels = rng.integers(0, max(classes, 2), 40).astype(np.float32)
        if kind != "softmax" and classes > 1:
            labels = rng.integers(0, 2, (40, classes)).astype(np.float32) * rng.random((40, 1)).astype(np.float32)
        batch = {"label": labels.copy(), "weight": weights}
        batch["label"][~present] = NAN
        for name in [name for name in OF_EXAMPLES if kind in METRICS[name].kinds]:
            if (name, kind, classes) == ("confusion", "sigmoid", 3):
                continue
            metric = build_metric(name, kind=kind, outputs=classes)
            tensors = {key: tf.constant(value) for key, value in batch.items()}
            measured = measure_outputs({"": [metric]}, tf.constant(outputs), tensors)[name][1]
            found = metric.finalise({key: value.numpy() for key, value in measured.items()})
            expected = compute(name, kind, outputs[present], labels[present], weights[present])
            np.testing.assert_allclose(found, expected, rtol=1e-13, err_msg=f"{name} {kind} {classes}")


@pytest.mark.parametrize("name", BY_HAND)
def test_a_metric_of_no_example_is_not_defined_and_no_error(name: str) -> None:
    kind, outputs, labels, _, _ = BY_HAND[name]
    found = compute(name, kind, np.asarray(outputs, np.float32)[:0], np.asarray(labels)[:0])
    assert np.isnan(found) if name != "confusion" else found == np.zeros((3, 3)).tolist()


def test_a_figure_that_one_class_alone_does_not_define_is_nan() -> None:
    assert np.isnan(compute("auc", "sigmoid", [[1.0], [2.0]], [1.0, 1.0]))
    assert np.isnan(compute("auc", "sigmoid", [[NAN], [2.0]], [0.0, 1.0]))
    assert np.isnan(compute("mse", "mse", [[NAN]], [0.0]))


def test_r2_keeps_its_digits_where_the_spread_is_small_beside_the_mean() -> None:
    rng = np.random.default_rng(0)
    targets = 1e6 + rng.standard_normal(50)
    outputs = (targets + 0.1 * rng.standard_normal(50))[:, None]
    expected = 1 - ((outputs[:, 0] - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert compute("r2", "mse", outputs, targets, sizes=[13, 30, 7]) == pytest.approx(expected, abs=1e-12)


# ---- scikit-learn

Cases = list[tuple[str, np.ndarray, np.ndarray]]


def cases() -> dict[str, Cases]:
    """kind -> (what, outputs, labels); some classes are rare, never predicted, or without examples."""
    rng = np.random.default_rng(7)

    def logits(*shape: int) -> np.ndarray:
        return (2 * rng.standard_normal(shape)).astype(np.float32)

    found: dict[str, Cases] = {"softmax": [], "sigmoid": [], "mse": []}
    for classes in (2, 3, 8):
        found["softmax"].append((f"{classes} classes", logits(97, classes), rng.integers(0, classes, 97)))
    bent = logits(60, 5) - np.array([0, 0, 9, 0, 0], np.float32)
    found["softmax"].append(("a class never predicted", bent, rng.integers(0, 5, 60)))
    found["softmax"].append(("a class without examples", logits(60, 5), rng.integers(0, 4, 60)))
    found["softmax"].append(("ties", np.round(logits(80, 2)), rng.integers(0, 2, 80)))
    found["sigmoid"].append(("one output", logits(90, 1), rng.integers(0, 2, 90)))
    found["sigmoid"].append(("ties of one output", np.round(logits(90, 1)), rng.integers(0, 2, 90).astype(np.float32)))
    labels = rng.integers(0, 2, (70, 4))
    found["sigmoid"].append(("several labels", logits(70, 4), labels))
    found["mse"].append(("one column", logits(80, 1), logits(80)))
    found["mse"].append(("columns", logits(80, 3), logits(80, 3) + np.array([0, 100, -3], np.float32)))
    constant = logits(20, 2)
    constant[:, 1] = 3.0
    found["mse"].append(("a constant column", logits(20, 2), constant))
    return found


def sklearn_value(name: str, kind: str, outputs: np.ndarray, labels: np.ndarray, weights: Any) -> Any:
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra `dev`)")
    values, given = outputs.astype(np.float64), {"sample_weight": weights}
    if kind == "mse":
        function = {"mae": sk.mean_absolute_error, "mse": sk.mean_squared_error, "rmse": sk.root_mean_squared_error}
        return (function | {"r2": sk.r2_score})[name](labels.astype(np.float64), values, **given)
    several = kind == "sigmoid" and outputs.shape[1] > 1
    classes = max(outputs.shape[1], 2)
    predicted = values > 0 if several else (values[:, 0] > 0 if kind == "sigmoid" else values.argmax(axis=1))
    if name == "accuracy" and several:
        return np.average((predicted == labels).mean(axis=1), weights=weights)
    if name.startswith("top"):
        return sk.top_k_accuracy_score(labels, values, k=int(name[3:]), labels=range(classes), **given)
    if name == "confusion":
        return sk.confusion_matrix(labels, predicted, labels=range(classes), **given).tolist()
    if name in ("f1", "precision", "recall"):
        return getattr(sk, f"{name}_score")(labels, predicted, average="macro", zero_division=0, **given)
    if name == "auc":
        if several:
            return sk.roc_auc_score(labels, values, average="macro", **given)
        raised = np.exp(values - values.max(axis=1, keepdims=True))
        shares = raised / raised.sum(axis=1, keepdims=True)
        if classes == 2:
            return sk.roc_auc_score(labels, values[:, 0] if kind == "sigmoid" else shares[:, 1], **given)
        with_both = [n for n in range(classes) if (labels == n).any()]
        return np.mean([sk.roc_auc_score(labels == n, shares[:, n], **given) for n in with_both])
    return {"accuracy": sk.accuracy_score, "balanced_accuracy": sk.balanced_accuracy_score}[name](
        labels, predicted, **given
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("f1", "auc", "r2") else pytest.param(name, marks=pytest.mark.slow)
        for name in (*OF_EXAMPLES, "top3")
    ],
)
def test_values_are_those_of_scikit_learn(name: str) -> None:
    rng = np.random.default_rng(1)
    kinds = METRICS[name].kinds if name in METRICS else ("softmax",)
    compared = 0
    for kind in kinds:
        for what, outputs, labels in cases()[kind]:
            several = kind == "sigmoid" and outputs.shape[1] > 1
            if (name == "confusion" and several) or (name == "balanced_accuracy" and several):
                continue
            if name.startswith("top") and (int(name[3:]) >= outputs.shape[1] or outputs.shape[1] == 2):
                continue  # scikit-learn wants one score of two classes, and ranks the higher one of equal ones first
            for weights in (None, rng.random(len(outputs)).astype(np.float32) + 0.01):
                expected = sklearn_value(name, kind, outputs, labels, weights)
                sizes = [7, len(outputs) - 12, 5]
                found = compute(name, kind, outputs, labels, weights, sizes=sizes)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=f"{name}: {kind}, {what}")
                compared += 1
    assert compared


# ---- which are built for what


def test_metrics_are_built_for_the_outputs_that_they_suit() -> None:
    kinds = {"species": "softmax", "age": "mse"}
    asked = check_fits(parse_metrics("f1, mae,species:top2"), kinds)
    found = build_metrics(asked, kinds=kinds, outputs={"species": 4, "age": 1})
    assert {task: [each.name for each in own] for task, own in found.items()} == {
        "species": ["f1", "top2"],
        "age": ["mae"],
    }
    assert [each.higher_is_better for each in (*found["species"], *found["age"])] == [True, True, False]
    outputs = {"species": tf.eye(4), "age": tf.ones([4, 1])}
    batch = {"label/species": tf.range(4), "label/age": tf.constant([1.0, 2.0, 3.0, NAN]), "weight": tf.ones([4])}
    measured = measure_outputs(found, outputs, batch | {"weight/age": tf.constant([1.0, 1.0, 1.0, 0.0])})
    assert list(measured) == ["f1/species", "top2/species", "mae/age"]
    assert measured["mae/age"][1]["errors"].numpy().tolist() == [3.0]
    assert measured["mae/age"][1]["weight"] == 3.0


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: parse_metrics("f1,acuracy"), "`acuracy` is not a metric; .*nearest: accuracy"),
    "top0": (lambda: parse_metrics("top0"), "`top0` is not a metric"),
    "empty": (lambda: parse_metrics("f1,"), "`` is not a metric"),
    "twice": (lambda: parse_metrics("f1,auc,f1"), "f1 is named twice"),
    "no output": (lambda: parse_metrics(":f1"), "names no output before the colon"),
    "no name": (lambda: parse_metrics("py:mine"), "expected py:module:name"),
    "unknown output": (
        lambda: check_fits(parse_metrics("specis:f1"), {"species": "softmax"}),
        "metrics=specis:f1: there is no output 'specis'; expected one of species; nearest: species",
    ),
    "of one": (lambda: check_fits(parse_metrics("a:f1"), {"": "softmax"}), "no output 'a', but one without a name"),
    "of another loss": (
        lambda: check_fits(parse_metrics("r2"), {"": "softmax"}),
        "metrics=r2: it is for outputs of mse, but the loss is softmax; for softmax there are accuracy, .*topK",
    ),
    "users of several": (
        lambda: check_fits(parse_metrics("py:m:n"), {"a": "softmax", "b": "mse"}),
        "several outputs, a and b; say for which it is, as in a:py:m:n",
    ),
    "top of few": (lambda: build_metric("top5", kind="softmax", outputs=5), "always be 1; expected at most top4"),
    "table": (lambda: build_metric("confusion", kind="sigmoid", outputs=3), "several labels, .*use f1"),
    "shape": (lambda: compute_with("f1", tf.zeros([2, 3])), r"outputs have shape \(2, 3\); expected \[B, 4\]"),
}


def compute_with(name: str, outputs: Any) -> Any:
    metric = build_metric(name, kind="softmax", outputs=4)
    return measure_metrics([metric], outputs, tf.constant([0, 1]), None)


@pytest.mark.parametrize("name", WRONG)
def test_a_metric_that_does_not_fit_is_named_with_the_way_out(name: str) -> None:
    act, message = WRONG[name]
    with pytest.raises(MetricError, match=message):
        act()


class Own:
    """The user's own metric, without a base class."""

    name = "own"

    def measure(self, outputs: Any, labels: Any, weights: Any) -> Mapping[str, Any]:
        return {"count": tf.shape(outputs)[0]}

    def finalise(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["count"])


def test_a_metric_of_the_users_own_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("users_metrics")
    module.__dict__.update(Own=Own, own=Own(), make=lambda: Own(), five=5, broken=lambda: 1 / 0)
    module.__dict__["spaced"] = type("Spaced", (Own,), {"name": "my metric"})
    module.__dict__["loss"] = type("Loss", (Own,), {"name": "loss"})
    monkeypatch.setitem(__import__("sys").modules, "users_metrics", module)
    for name in ("Own", "own", "make"):
        assert import_metric(f"py:users_metrics:{name}").name == "own"
    for name, message in (
        ("five", "int has no method measure"),
        ("broken", "it raised ZeroDivisionError"),
        ("spaced", "its name is 'my metric'; expected a word"),
        ("loss", "its name is 'loss', which every evaluation has"),
        ("owm", "users_metrics has no 'owm'; nearest: own"),
    ):
        with pytest.raises(ValueError, match=message):
            import_metric(f"py:users_metrics:{name}")
