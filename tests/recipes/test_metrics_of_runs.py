"""--metrics in a run: the same figures from images and from features, in every file, and after the run; --monitor by one."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import two_tasks
from run_figures import check_equal

from engine.errors import InputError
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult, finetune
from engine.recipes.listener import Listener
from engine.recipes.reopen import open_run
from engine.recipes.task import Task
from engine.runs import picture, records
from engine.selection.selection import select
from engine.training.evaluation import Evaluator
from engine.training.metrics import as_probabilities, count_confusions, measure_auc

METRICS = "f1,recall,auc,confusion,top2,accuracy"
USERS = """
import tensorflow as tf
from engine.training.metric import Metric
from engine.training.optimizers import Optimizer
from engine.training.optimizer_base import read_slot, write_slot

class Heavy(Optimizer):
    fixed_slots = ("sum",)
    def update(self, variable, gradient, rate, slots, powers, constants):
        total = 0.5 * read_slot(slots["sum"], variable) + gradient
        write_slot(slots["sum"], total)
        variable.assign_sub(rate * total)

def fall(step, total):
    return 1.0 / (1.0 + step)

class Margin(Metric):
    name = "margin"
    higher_is_better = True
    def measure(self, outputs, labels, weights):
        top = tf.math.top_k(tf.cast(outputs, tf.float64), 2).values
        return {"sum": tf.reduce_sum(top[:, 0] - top[:, 1]), "count": tf.shape(outputs)[0]}
    def finalise(self, sums):
        return float(sums["sum"] / sums["count"]) if sums["count"] else float("nan")
"""


class Stopping(Listener):
    """Stops after some steps, and keeps what it hears."""

    stopped_by = "the test"

    def __init__(self, after: int | None = None) -> None:
        self._after, self._steps = after, 0
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def handle(self, event: Any) -> None:
        self._steps += event.kind == "step"

    def should_stop(self) -> bool:
        return self._after is not None and self._steps >= self._after


@pytest.fixture(scope="module")
def leave_no_trace() -> Iterator[None]:
    from tensorflow.python.framework import config  # there is no public way to switch it off again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        yield
    config.disable_op_determinism()


@pytest.fixture(scope="module")
def given(small_data: pathlib.Path, leave_no_trace: None) -> dict[str, Any]:
    del leave_no_trace
    return {
        "model": "cnn:mini", "weights": "none", "data": f"npz:{small_data}", "eval_fraction": 0.3, "batch_size": 8,
        "train": "@head", "steps": 4, "eval_every": 2, "log_every": 1, "learning_rate": 0.05,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run on cached features that measures much, and keeps the checkpoint with the best F1."""
    out = str(tmp_path_factory.mktemp("measured") / "run")
    config = FinetuneConfig(**given, cache="require", metrics=METRICS, monitor="eval_f1", keep_best=True, out=out)
    return finetune(config)


def test_the_figures_of_a_run_are_in_all_its_files_and_evaluate_has_them_too(run: RunResult) -> None:
    final = run.run["final"]
    assert {"eval_f1", "eval_recall", "eval_auc", "eval_confusion", "eval_top2", "test_f1", "test_confusion"} <= set(
        final
    )
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "eval"][-1]
    assert {name: last[name] for name in last if name.startswith("eval_")} == {
        name: value for name, value in final.items() if name.startswith("eval_")
    }
    assert "| evaluation f1, at the end |" in (run.out / "card.md").read_text().replace("\\_", "_")

    opened = open_run(run.out)
    examples = open_examples(opened)
    report = evaluate(opened, examples)
    recorded = {name.removeprefix("eval_"): final[name] for name in final if name in last and name != "eval_loss"}
    check_equal(opened, report.figures["metrics"], recorded)
    labels = examples.part.labels
    outputs = opened.predictor().outputs(next(iter_images(opened, examples)))
    assert report.figures["metrics"]["confusion"] == count_confusions(labels, outputs.argmax(axis=1), 3).tolist()
    shares = as_probabilities(outputs, "softmax")
    areas = [measure_auc(shares[:, n], labels == n) for n in range(3)]
    assert report.figures["metrics"]["auc"] == pytest.approx(np.mean(np.array(areas, float)), abs=1e-12)
    assert report.figures["metrics"]["f1"] == pytest.approx(report.figures["macro"]["f1"], abs=1e-15)
    other = evaluate(opened, examples, named="balanced_accuracy").figures["metrics"]
    assert list(other) == ["balanced_accuracy"]


def iter_images(opened: Any, examples: Any) -> Iterator[Any]:
    yield opened.normalise(examples.part.read(np.arange(len(examples.part)))["image"])


@pytest.mark.slow  # evaluate, above, computes the figures of a cached run from images
def test_features_give_the_figures_of_images(run: RunResult, given: dict[str, Any], tmp_path: pathlib.Path) -> None:
    config = FinetuneConfig(**given, cache="off", metrics=METRICS, out=str(tmp_path / "uncached"))
    uncached = finetune(config).run["final"]
    for name in ("eval_f1", "eval_auc", "eval_confusion", "eval_top2", "test_f1"):
        np.testing.assert_allclose(run.run["final"][name], uncached[name], rtol=1e-6)


def test_the_best_checkpoint_is_that_of_the_monitored_figure(run: RunResult) -> None:
    scores = [(each.figures["f1"], -each.step) for each in run.evaluations]
    assert (run.out / "checkpoints/best.npz").exists()
    assert open_run(run.out, checkpoint="best").step == -max(scores)[1]
    assert run.evaluations[0].to_json()[5:] == [dict(run.evaluations[0].figures), ()]


@pytest.mark.slow  # check_optimizer resumes too, and the page about extending trains with such parts
def test_rules_and_metrics_of_the_users_own_resume_to_the_same_bits(
    given: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_rules.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    own: dict[str, Any] = {"optimizer": "py:users_rules:Heavy,clip_norm=5", "schedule": "py:users_rules:fall"}
    own |= {"metrics": "py:users_rules:Margin", "monitor": "eval_margin", "keep_best": True, "cache": "off"}
    whole = finetune(FinetuneConfig(**given | own, out=str(tmp_path / "whole")))
    assert whole.run["final"]["eval_margin"] > 0
    rates = [json.loads(line) for line in (whole.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rates if row["kind"] == "train"] == [0.05 / (1 + n) for n in range(4)]
    stopped = FinetuneConfig(**given | own, out=str(tmp_path / "stopped"))
    assert finetune(stopped, listener=Stopping(after=2)).code == 3
    resumed = finetune(FinetuneConfig(**given | own, out=str(tmp_path / "stopped"), resume=True))
    assert resumed.evaluations == whole.evaluations
    with np.load(whole.out / "trained.npz") as one, np.load(resumed.out / "trained.npz") as other:
        assert set(one.files) == set(other.files)
        for name in one.files:
            assert np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes(), name
    with np.load(whole.out / "checkpoints/step-00000004.npz") as saved:
        assert any(name.startswith("optimizer/head/") and name.endswith("/sum") for name in saved.files)


def test_each_of_several_outputs_is_measured_by_what_suits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = two_tasks.make_source()
    task = Task.open(
        data=source,
        model="py:two_tasks:factory",
        loss=two_tasks.LOSS,
        metrics="f1,mae,species:top2",
        weights="none",
        batch_size=8,
    )
    found = Evaluator(task.loss_fn)(select(task.variables, "@all"), task.eval_batches(batch_size=4))
    assert [name for name in found.figures if "loss" not in name and "accuracy" not in name] == [
        "f1/species", "top2/species", "mae/age"
    ]  # fmt: skip
    assert set(found.lower) == {"loss/species", "loss/age", "mae/age"}
    part = source.eval
    outputs = task.model.network(task.normalise(part.read(np.arange(len(part)))["image"]))
    present = part.columns["weight/age"] > 0
    errors = np.abs(outputs["age"].numpy()[:, 0].astype(np.float64) - part.columns["label/age"])[present]
    assert found.figures["mae/age"] == pytest.approx(errors.mean(), rel=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"metrics": "f2"}, "metrics='f2': `f2` is not a metric; expected some of accuracy, .*nearest: r2, f1"),
    "of another loss": ({"metrics": "mae"}, "metrics=mae: it is for outputs of mse, but the loss is softmax"),
    "of a task": (
        {"metrics": "age:f1", "loss": "species=softmax, age=mse"},
        "metrics=age:f1: it is for outputs of softmax or sigmoid, but the loss is mse; for mse there are mae, mse, rmse, r2",
    ),
    "of a graph": ({"metrics": "f1", "loss": "graph:loss"}, "metrics=f1: --loss=graph:loss is computed by the graph"),
    "monitor": ({"monitor": "eval_f1"}, "monitor='eval_f1': expected one of eval_loss, eval_accuracy; --metrics=f1 computes it"),
    "monitor of another": ({"monitor": "eval_f2", "metrics": "f1"}, "expected one of eval_loss, eval_accuracy, eval_f1; nearest: eval_f1"),
    "table": ({"monitor": "eval_confusion", "metrics": "confusion"}, "monitor='eval_confusion': it is a table"),
    "optimizer": ({"optimizer": "py:mine"}, "optimizer='py:mine' is not a valid optimizer; expected py:module:name"),
    "schedule": ({"schedule": "py:mine:fall,warmup=3"}, "is not a valid schedule; expected py:module:name, without options"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_opened(name: str) -> None:
    fields, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        FinetuneConfig(**fields)


LATE: dict[str, tuple[dict[str, str], str]] = {
    "no optimizer": ({"optimizer": "py:users_bad:Sgd"}, "optimizer='py:users_bad:Sgd': users_bad has no 'Sgd'"),
    "a Keras optimizer": ({"optimizer": "py:users_bad:SGD"}, "the class SGD is not an optimizer of this library"),
    "no class": ({"optimizer": "py:users_bad:five"}, "optimizer='py:users_bad:five': it is an int; expected a subclass"),
    "option": ({"optimizer": "py:users_bad:Empty,rho=0.9"}, "`rho=0.9`: expected a hyperparameter of py:users_bad:Empty"),
    "no update": ({"optimizer": "py:users_bad:Empty"}, "Empty has no method update"),
    "schedule raises": ({"schedule": "py:users_bad:broken"}, "schedule='py:users_bad:broken': it raised ZeroDivisionError.*step 3 of 4"),
    "schedule falls below 0": ({"schedule": "py:users_bad:negative"}, "at step 3 of 4 it returned -1; expected a finite factor"),
    "schedule with a memory": ({"schedule": "py:users_bad:counting"}, "when it was asked again; expected a function of its arguments"),
    "no metric": ({"metrics": "py:users_bad:five"}, "int has no method measure"),
    "top of few": ({"metrics": "top3"}, "metrics=top3: there are 3 classes, so it would always be 1; expected at most top2"),
    "accuracy of values": ({"loss": "mse", "monitor": "eval_accuracy"}, r"monitor='eval_accuracy': expected eval_loss \(the loss has no accuracy"),
    "monitor": ({"metrics": "py:users_bad:Mean", "monitor": "eval_meen"}, "expected eval_loss or eval_accuracy or eval_mean; nearest"),
}  # fmt: skip
BAD = """
import itertools
from keras.optimizers import SGD
from engine.training.optimizers import Optimizer

five = 5
class Empty(Optimizer):
    pass
def broken(step, total):
    return 1 / (3 - step)
def negative(step, total):
    return 2 - step
calls = itertools.count()
def counting(step, total):
    return next(calls)
class Mean:
    name = "mean"
    def measure(self, outputs, labels, weights):
        return {"values": outputs[:, 0]}
    def finalise(self, sums):
        return float(sums["values"].mean())
"""


@pytest.mark.parametrize("name", LATE)
def test_what_is_wrong_with_the_users_own_is_told(
    name: str, given: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_bad.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    fields, message = LATE[name]
    with pytest.raises(InputError, match=message):
        finetune(FinetuneConfig(**given | fields, cache="off", dry_run=True, out=str(tmp_path / "run")))
