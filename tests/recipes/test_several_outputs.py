"""Runs with several outputs: each with its loss, labels and figures; their phases, caches, files and what opens them."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import two_tasks
from run_figures import check_equal, check_run_figures
from two_tasks import LOSS, make_source

from engine import InputError, finetune, select
from engine.data import open_data
from engine.data.part import Source, Target
from engine.data.source import open_undivided
from engine.files import Npz
from engine.porting import PortError
from engine.recipes import evaluation_data
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import DONE, STOPPED
from engine.recipes.listener import Listener
from engine.recipes.reopen import open_run
from engine.recipes.task import Task
from engine.training.evaluation import Evaluator
from engine.training.loss_names import LossError

FLAGS = (
    "--weights=none",
    "--batch_size=8",
    "--eval_every=4",
    "--log_every=1",
    f"--loss={LOSS}",
    "--data=fashion_mnist_mini",
)
PY = "--model=py:two_tasks:factory"
TURNS = (
    "--phase=name=species group=turns repeat=2 train=head/species/.* losses=species steps=2",
    "--phase=name=age group=turns train=head/age/.* losses=age steps=2 learning_rate=0.1",
    "--phase=name=both train=@head steps=3",
)


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> Source:
    """Data with two tasks, in the place of those that a run or an evaluation opens."""
    source = make_source(test=6)
    monkeypatch.setattr("engine.data.open_data", lambda *_, **__: source)
    monkeypatch.setattr(evaluation_data, "open_undivided", lambda *_, **__: source)
    return source


def rows(out: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with Npz(path) as npz:
        return {name: npz.read(name) for name in npz.names()}


# ---- a run, and everything that it leaves behind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(call: Any, folder: pathlib.Path) -> pathlib.Path:
    """A run whose heads train in turns from one cache, and then together; done once."""
    out = folder / "turns"
    if not out.exists():
        code, printed, error = call(PY, *FLAGS, *TURNS, "--cache=require", f"--out={out}")
        assert code == 0, printed + error
        (folder / "printed").write_text(printed)
    return out


def test_heads_train_in_turns_from_features_that_are_computed_once(run: pathlib.Path) -> None:
    told = json.loads((run / "run.json").read_text())
    names = ["turns.1.species", "turns.1.age", "turns.2.species", "turns.2.age", "both"]
    assert [phase["name"] for phase in told["phases"]] == names
    assert [phase["trained"] for phase in told["phases"][:2]] == [["head/species/kernel"], ["head/age/kernel"]]
    assert told["freeze_proof"]["verified"]
    computed = [phase["computed_rows"] for phase in told["cache"]["phases"]]
    assert computed == [24 + 10, 0, 0, 0, 0]  # every image once, for both tasks
    losses = [set(row) & {"accuracy/species"} for row in rows(run, "train")]
    assert [bool(each) for each in losses] == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2 + [True] * 3


def test_evaluations_show_each_output_in_files_and_on_the_screen(run: pathlib.Path, folder: pathlib.Path) -> None:
    last = rows(run, "eval")[-1]
    assert last["eval_accuracy"] is None
    assert 0 <= last["eval_accuracy/species"] <= 1
    assert last["eval_loss"] == pytest.approx(last["eval_loss/species"] + last["eval_loss/age"], rel=1e-12)
    told = json.loads((run / "run.json").read_text())
    assert told["final"]["eval_loss/age"] == last["eval_loss/age"]
    assert "test_accuracy/species" in told["final"]
    assert [task["name"] for task in told["data"]["tasks"]] == ["species", "age"]
    printed = (folder / "printed").read_text()
    assert "accuracy/species: " in printed
    assert "train: 16 of 24 examples have a label of 'species'" in printed
    card = (run / "card.md").read_text()
    assert "softmax, 3 classes: ant, bee and cat" in card
    assert f"frostline predict --run={run} --images=FOLDER --out=found.csv" in card
    assert f"frostline export --run={run}" in card


@pytest.mark.slow
def test_cached_and_uncached_runs_are_equal(run: pathlib.Path, folder: pathlib.Path, call: Any) -> None:
    out = folder / "uncached"
    code, printed, error = call(PY, *FLAGS, *TURNS, "--cache=off", f"--out={out}")
    assert code == 0, printed + error
    one, other = (arrays(each / "trained.npz") for each in (run, out))
    assert one.keys() == other.keys() == {"head/species/kernel", "head/age/kernel"}
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        [row["loss"] for row in rows(run, "train")], [row["loss"] for row in rows(out, "train")], rtol=1e-5
    )


class StopAfter(Listener):
    """Stops a run after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def handle(self, event: Any) -> None:
        self.left -= event.kind == "step"

    def should_stop(self) -> bool:
        return self.left <= 0


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(run: pathlib.Path, folder: pathlib.Path) -> None:
    out = folder / "stopped"
    words = dict(word.removeprefix("--").split("=", 1) for word in (PY, *FLAGS))
    given: dict[str, Any] = words | {name: int(words[name]) for name in ("batch_size", "eval_every", "log_every")}
    given |= {"phase": [text.removeprefix("--phase=") for text in TURNS], "cache": "require", "out": str(out)}
    assert finetune(FinetuneConfig(**given), listener=StopAfter(3)).code == STOPPED  # within turns.1.age
    assert finetune(FinetuneConfig(**given, resume=True)).code == DONE
    one, other = (arrays(each / "checkpoints/step-00000011.npz") for each in (run, out))
    assert {name: value.tobytes() for name, value in one.items()} == {n: v.tobytes() for n, v in other.items()}
    for kind in ("train", "eval"):
        found = [[row | {"examples_per_second": 0} for row in rows(each, kind)] for each in (run, out)]
        assert found[0] == found[1]


def test_a_run_is_evaluated_again_and_for_each_output(run: pathlib.Path) -> None:
    opened = open_run(run)
    assert opened.tasks == ("species", "age")
    report = evaluate(opened, open_examples(opened))
    check_run_figures(opened, report)
    last = rows(run, "eval")[-1]
    species, age = report.figures["tasks"]["species"], report.figures["tasks"]["age"]
    recorded = {"loss": last["eval_loss/species"], "accuracy": last["eval_accuracy/species"]}
    check_equal(opened, {name: species[name] for name in recorded}, recorded)
    assert (species["examples"], age["examples"]) == (7, 8)  # those that have a label
    assert [each["name"] for each in species["classes"]] == ["ant", "bee", "cat"]
    assert sum(map(sum, species["confusions"])) == 7
    assert age["columns"][0]["mean_absolute_error"] >= 0
    json.dumps(report.figures)


def test_one_output_is_used_alone(run: pathlib.Path) -> None:
    opened = open_run(run)
    images = two_tasks.make_arrays(5)["image"]
    both = opened.network(opened.normalise(images))
    logits = both["species"].numpy().astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    species = opened.for_task("species").predictor()
    np.testing.assert_allclose(species(images), expected, rtol=1e-5)
    assert species.class_names == ("ant", "bee", "cat")
    np.testing.assert_allclose(opened.for_task("age").predictor()(images), both["age"], rtol=1e-5)
    with pytest.raises(
        InputError, match="task='ages': the model has no such output; it has species and age; nearest: age"
    ):
        opened.for_task("ages")


def test_what_takes_one_output_says_so(run: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"its model has several outputs \(species and age\), but .*for_task"):
        open_run(run).predictor()


# ---- what fits together


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one loss": ({"loss": "softmax"}, r"two_tasks has labels of species and age; name .*--loss='species=softmax, age=mse'"),
    "no such task": ({"loss": "spices=softmax"}, "it has no labels of 'spices'; its tasks are species and age.*nearest: species"),
    "classes of numbers": ({"loss": "age=softmax"}, "the loss softmax needs integer class labels, but these are float32"),
    "weights of numbers": ({"loss": "age=sigmoid class_weights=x.csv"}, "class_weights=x.csv: there is no such file"),
    "head": ({"model": "graph:x.pb"}, "graph"),
    "classes": ({"model": "cnn:mini,classes=4"}, "the option classes is about one output, but the loss names several"),
    "an output without a loss": (
        {"model": "py:two_tasks:TwoOutputs", "loss": "species=softmax"},
        "no loss names its output age; add it to --loss, as in 'age=softmax'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told(case: str, data: Source) -> None:
    fields, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        Task.open(data=data, **{"model": "cnn:mini", "loss": LOSS, "weights": None} | fields)


def test_data_with_one_label_take_no_named_losses(data: Source) -> None:
    with pytest.raises(
        LossError, match=r"it names species and age, but .* has one label for each example, without a name"
    ):
        Task.open(data=two_tasks.as_single(data), model="cnn:mini", loss=LOSS)


@pytest.mark.parametrize(
    "model", ["cnn:mini", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit:mini,depth=1,", "keras"))]
)
def test_models_of_all_kinds_get_a_head_for_each_task(model: str, data: Source) -> None:
    if model == "keras":
        pytest.importorskip("keras")
        model = "py:two_tasks:keras_trunk"
    given = {"head": "gap,5"} if "py" in model else {}
    task = Task.open(data=data, model=model.strip(","), loss=LOSS, weights=None, batch_size=24, **given)
    heads = {entry.path.rpartition("/")[0] for entry in task.variables if "head" in entry.groups}
    inner = {"head/species/hidden_0", "head/species/logits", "head/age/hidden_0", "head/age/logits"}
    assert heads == (inner if given else {"head/species", "head/age"})
    batch = task.train_batches().at(0)
    shapes = {name: tuple(each.shape) for name, each in task.model.network(batch["image"]).items()}
    assert shapes == {"species": (24, 3), "age": (24, 1)}
    assert task.model.tasks == {"species": 3, "age": 1}


@pytest.mark.slow
def test_a_keras_model_keeps_its_own_outputs_without_their_softmax(data: Source, tmp_path: pathlib.Path) -> None:
    two_tasks.keras_outputs().save(tmp_path / "two.keras")
    for model in (f"file:{tmp_path}/two.keras", "py:two_tasks:keras_outputs"):
        task = Task.open(data=data, model=f"{model},preprocess=unit", loss=LOSS, batch_size=8)
        assert task.model.tasks == {"species": 3, "age": 1}
        assert "the final softmax of species was removed, since its loss expects logits" in task.model.notes
        found = task.model.network(task.train_batches().at(0)["image"])
        assert not np.allclose(found["species"].numpy().sum(1), 1.0)
    with pytest.raises(InputError, match="it has no output 'age'; its outputs are species and weight"):
        Task.open(data=data, model="py:two_tasks:other_outputs,preprocess=unit", loss=LOSS)


# ---- monitors, phases, weights of classes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"monitor": "eval_accuracy"}, "monitor=eval_accuracy: there are several outputs, species, age; say which one, as in "),
        ({"phase": ("train=@head steps=1 losses=spices",)}, "phase 'train': losses=spices: --loss has no 'spices'"),
        ({"loss": "softmax", "phase": ("train=@head steps=1 losses=a",)}, "the run has one loss, so there is nothing"),
        ({"class_weights": "balanced"}, "class_weights=balanced: it is about the only output"),
    ],
)  # fmt: skip
def test_a_config_is_checked_without_data(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FinetuneConfig(**{"loss": LOSS} | fields)


def test_any_figure_of_an_output_can_be_monitored() -> None:
    for monitor in ("eval_loss", "eval_loss/age", "eval_accuracy/species"):
        assert FinetuneConfig(loss=LOSS, monitor=monitor).monitor == monitor


def test_a_head_without_its_loss_is_refused_before_anything_is_written(call: Any, tmp_path: pathlib.Path) -> None:
    code, _, error = call(PY, *FLAGS, "--phase=name=a train=@head losses=species steps=1", f"--out={tmp_path}/run")
    assert code == 2
    assert "these do not depend on 1 trained variable(s): head/age/kernel; write losses=species,age, or leave" in error
    assert not (tmp_path / "run").exists()


def test_balanced_weights_come_from_the_labels_of_the_training_part(data: Source) -> None:
    said: list[str] = []
    loss = "species=focal class_weights=balanced, age=mse"
    task = Task.open(data=data, model="cnn:mini", loss=loss, weights=None, batch_size=8, say=said.append)
    present = data.train.columns["weight/species"] > 0
    counts = np.bincount(data.train.labels[present], minlength=3)
    assert task.outputs[0].class_weights == tuple(present.sum() / (3 * counts))
    assert any(line.startswith("weights of classes of species: ant ") for line in said)
    batch = task.train_batches().at(0)
    terms = task.loss_fn(batch, training=False, seeds=None).terms
    own = np.array(task.outputs[0].class_weights)[batch["label/species"]] * batch["weight/species"]
    np.testing.assert_allclose(terms["species"][1], own, rtol=1e-6)


@pytest.mark.slow
def test_class_weights_of_a_file_are_kept_and_compared(
    run: pathlib.Path, folder: pathlib.Path, call: Any, data: Source
) -> None:
    file, out = folder / "weights.json", folder / "weighed"
    file.write_text('{"ant": 1, "bee": 2, "cat": 0.5}')
    loss = f"--loss=species=softmax class_weights={file}, age=mse"
    flags = (PY, "--weights=none", "--batch_size=8", "--data=fashion_mnist_mini", loss, "--train=@head", "--cache=off")
    code, printed, error = call(*flags, "--steps=2", f"--out={out}")
    assert code == 0, printed + error
    assert "weights of classes of species: ant 1, bee 2, cat 0.5" in printed
    file.write_text('{"ant": 1, "bee": 1, "cat": 1}')
    report = evaluate(open_run(out), open_examples(open_run(out)))
    check_run_figures(open_run(out), report)  # by the weights that the run had
    code, _, error = call(f"--out={out}", "--resume")
    assert code == 2
    assert "class_weights (values): {'species': [1.0, 2.0, 0.5]} in the checkpoint" in error


def test_a_head_for_classes_in_another_order_is_not_taken(run: pathlib.Path, data: Source) -> None:
    target = data.tasks[0]._replace(classes=("bee", "ant", "cat"))
    other = replace(data, classes=target.classes, tasks=(target, data.tasks[1]))
    given: dict[str, Any] = {"model": PY.removeprefix("--model="), "loss": LOSS, "batch_size": 8}
    assert Task.open(data=data, weights=f"none+{run}/trained.npz", force_base=True, **given).weights is not None
    with pytest.raises(
        PortError, match="its output 'species' is for ant, bee and cat, in this order, and the data have bee"
    ):
        Task.open(data=other, weights=f"none+{run}/trained.npz", force_base=True, **given)


@pytest.mark.slow
def test_shipped_weights_are_loaded_below_new_heads() -> None:
    source = open_data("fashion_mnist_mini", train_examples=32)
    even = {name: replace(part, label_name="label/kind", columns={"label/even": part.labels % 2}) for name, part in (
        ("train", source.train), ("eval", source.eval)
    )}  # fmt: skip
    tasks = (Target("kind", source.classes), Target("even", ("odd", "even")))
    source = replace(source, tasks=tasks, test=None, **even)
    task = Task.open(data=source, model="vit:mini", loss="kind=softmax, even=sigmoid", batch_size=32)
    assert task.weights is not None
    assert task.weights.text.startswith("vit_mini_fashion5.npz, 102 variables loaded")
    assert {o.name: o.count for o in task.outputs} == {"kind": 10, "even": 1}


def test_the_weights_of_examples_weigh_the_loss_and_the_figures(data: Source) -> None:
    single = two_tasks.as_single(data)  # whose missing labels have the weight 0
    part = replace(single.train, columns={"weight": single.train.columns["weight"] * np.arange(24) / 8})
    task = Task.open(data=replace(single, train=part), model="cnn:mini", weights=None, batch_size=24)
    batch = task.train_batches().at(0)
    loss = task.loss_fn(batch, training=False, seeds=None)
    order = np.argsort(batch["index"])
    np.testing.assert_array_equal(np.asarray(loss.terms["softmax"][1])[order], part.columns["weight"])
    np.testing.assert_array_equal(np.asarray(loss.metrics["accuracy"][1])[order], part.columns["weight"])
    result = Evaluator(task.loss_fn)(select(task.variables, "@all"), task.eval_batches())
    hits, own = result.per_example["accuracy"], single.eval.columns["weight"]
    assert result.accuracy == pytest.approx((hits * own).sum() / own.sum(), rel=1e-12)


def test_a_table_with_two_labels_and_empty_cells_trains_and_is_evaluated(
    call: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.data.open_data", open_data)  # the table itself is opened
    monkeypatch.setattr(evaluation_data, "open_undivided", open_undivided)
    two_tasks.write_table(tmp_path / "t.csv")
    data = f"--data=table:{tmp_path}/t.csv,label=kind,label=size:number"
    flags = (
        "--model=py:two_tasks:vectors",
        data,
        "--train=@head",
        "--steps=40",
        "--batch_size=8",
        "--learning_rate=0.1",
    )
    loss = "--loss=kind=focal class_weights=balanced, size=mse"
    out = tmp_path / "run"
    code, printed, error = call(*flags, loss, "--metrics=kind:f1,mae", "--eval_fraction=0.25", f"--out={out}")
    assert code == 0, printed + error
    first, last = rows(out, "eval")[0], rows(out, "eval")[-1]
    assert last["eval_loss/size"] < first["eval_loss/size"] / 2
    assert last["eval_accuracy/kind"] > 0.6
    assert {"eval_f1/kind", "eval_mae/size"} <= last.keys()
    opened = open_run(out)
    report = evaluate(opened, open_examples(opened))
    check_run_figures(opened, report)
    assert report.figures["tasks"]["size"]["metrics"]["mae"] == pytest.approx(last["eval_mae/size"])
