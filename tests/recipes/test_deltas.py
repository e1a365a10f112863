"""What a run trained goes back onto its base bit for bit, and onto nothing else."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine import FinetuneConfig, InputError, Task, finetune, load_weights, tensorflow_private
from engine.files import Npz, write_npz
from engine.models import build_model
from engine.models.vit import SIZES
from engine.porting.deltas.record import find_digits, read_record_at, take_record
from engine.recipes.finetune import RunResult
from engine.runs import picture, records
from engine.runs.card import write_card
from engine.selection.selection import select
from engine.selection.variables import name_variables
from engine.training import checkpoint

MODEL = "vit:mini,depth=1"


def values(network: Any) -> dict[str, np.ndarray]:
    return {entry.path: entry.variable.numpy() for entry in name_variables(network)}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


class Runs:
    """Runs in one folder: ``head`` from a base, ``norm`` and ``again`` on top of it, ``both`` on top of ``norm``."""

    def __init__(self, folder: pathlib.Path, data: pathlib.Path) -> None:
        self.folder, self.data = folder, f"npz:{data}"
        network = build_model(MODEL, image_shape=(16, 16, 1), outputs=3, seed=7).network
        self.base = folder / "base.npz"
        write_npz(self.base, {k: v for k, v in values(network).items() if not k.startswith("head/")}.items())
        self.results: dict[str, RunResult] = {}
        self.train("head", weights=str(self.base), train="@head", ema=0.5)
        self.train("norm", weights=self.chain("head"), train="norm/.*")
        self.last = {name: values(result.network) for name, result in self.results.items()}
        self.make("again", self.chain("head"), "@head")
        self.make("both", self.chain("head", "norm"), "@head norm/.*")

    def train(self, name: str, **given: Any) -> RunResult:
        fields = {"model": MODEL, "data": self.data, "steps": 2, "batch_size": 8, "cache": "off"}
        config = FinetuneConfig(**(fields | {"out": str(self.folder / name)} | given))
        self.results[name] = finetune(config)
        return self.results[name]

    def make(self, name: str, weights: str, chosen: str) -> None:
        """Makes the delta of a run without the run."""
        task = Task.open(data=self.data, model=MODEL, weights=weights, batch_size=8)
        selection = select(task.variables, chosen)
        began = {entry.path: find_digits(entry) for entry in task.variables}
        for entry in selection.trained:
            entry.variable.assign_add(entry.variable * 0.5 + len(name))
        (self.folder / name).mkdir()
        records.write_trained(self.delta(name), task.variables, [selection], began=began)
        self.last[name] = values(task.model.network)

    def delta(self, name: str) -> str:
        return str(self.folder / name / "trained.npz")

    def chain(self, *names: str, base: Any = None) -> str:
        return "+".join([str(base or self.base), *map(self.delta, names)])

    def load(self, weights: str, *, model: str = MODEL, **given: Any) -> Any:
        """The values of a model of the same job with these weights."""
        force = given.pop("force_base", False)
        task = Task.open(data=self.data, model=model, weights=None, batch_size=8, **given)
        self.text = task.with_weights(weights, force_base=force).weights.text  # type: ignore[union-attr]
        return values(task.model.network)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        yield Runs(tmp_path_factory.mktemp("runs"), small_data)
    tensorflow_private.disable_op_determinism()


@pytest.mark.parametrize("names", [["head"], ["head", "norm"], ["head", "again"], ["again"], ["head", "norm", "both"]])
def test_base_and_deltas_are_the_last_weights_of_the_run(runs: Runs, names: list[str]) -> None:
    assert equal(runs.load(runs.chain(*names)), runs.last[names[-1]])
    assert f"then {runs.delta(names[-1])}, " in runs.text


def test_averages_are_a_delta_too(runs: Runs) -> None:
    found = runs.load(f"{runs.base}+{runs.folder / 'head' / 'ema.npz'}")
    with Npz(runs.folder / "head/ema.npz") as npz:
        assert {name: npz.read(name).tobytes() for name in npz.names()} == {
            name: found[name].tobytes() for name in ("head/kernel", "head/bias")
        }
    assert found["head/kernel"].tobytes() != runs.load(runs.chain("head"))["head/kernel"].tobytes()


def flip(runs: Runs, tmp_path: pathlib.Path) -> pathlib.Path:
    """The base with one bit of one weight flipped."""
    with Npz(runs.base) as npz:
        arrays = {name: npz.read(name) for name in npz.names()}
    arrays["blocks/0/mlp/up/kernel"].reshape(-1).view(np.uint8)[5] ^= 1
    write_npz(tmp_path / "flipped.npz", arrays.items())
    return tmp_path / "flipped.npz"


WRONG = {
    "other seed": ("none+{head}", {"seed": 1}, "blocks/0/attention/key/kernel: other values"),
    "other model": ("{base}+{head}", {"model": "vit:mini,depth=1,pool=mean,class_token"}, None),
    "deeper model": ("none+{head}", {"model": "vit:mini,depth=2"}, "its base does not have it"),
    "other family": ("none+{head}", {"model": "cnn:mini"}, "its base does not have it"),
    "other size of images": ("{base}+{head}", {"image_size": "20"}, "position_embedding: float32 [1, 26, 96], but float32 [1, 17, 96] in its base"),
    "other precision": ("{base}+{head}", {"precision": "float64"}, "float64 [96], but float32 [96] in its base"),
    "other order": ("{base}+{norm}+{head}", {}, "head/bias: other values"),
    "order of equals": ("{base}+{again}+{head}", {}, "it was not trained on top of"),
    "twice": ("{base}+{head}+{head}", {}, "it was not trained on top of"),
    "without the first": ("{base}+{norm}", {}, "what differs (2): head/bias: other values, head/kernel: other values."),
    "one bit flipped": ("{flipped}+{head}", {}, "what differs (1): blocks/0/mlp/up/kernel: other values."),
    "a checkpoint of the run on top": ("{base}+{checkpoint}", {}, "does not say which weights it belongs to"),
    "not a delta": ("{base}+{base}", {}, "does not say which weights it belongs to"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_base_is_refused(runs: Runs, tmp_path: pathlib.Path, case: str) -> None:
    form, given, said = WRONG[case]
    names = {name: runs.delta(name) for name in runs.last}
    names |= {"base": str(runs.base), "flipped": str(flip(runs, tmp_path)), "checkpoint": str(whole(runs))}
    if said is None:  # this model computes something else with the very same weights
        assert runs.load(form.format(**names), **given)
        return
    with pytest.raises(InputError) as caught:
        runs.load(form.format(**names), **given)
    message = str(caught.value)
    assert said in message
    assert "--force_base" in message
    if "digest" in message:
        record = read_record_at(names["norm" if "{norm}" in form else "head"])
        assert record is not None
        assert record.sha256[:16] in message


def whole(runs: Runs) -> pathlib.Path:
    return checkpoint.list_checkpoints(runs.folder / "head/checkpoints")[0]


def test_a_forced_base_is_said(runs: Runs, tmp_path: pathlib.Path) -> None:
    weights = f"{flip(runs, tmp_path)}+{runs.delta('head')}"
    found = runs.load(weights, force_base=True)
    assert "forced: it does not belong to these weights" in runs.text
    assert found["head/kernel"].tobytes() == runs.last["head"]["head/kernel"].tobytes()
    network = build_model(MODEL, image_shape=(16, 16, 1), outputs=3).network
    with pytest.raises(InputError, match="it belongs to other weights"):
        load_weights(network, weights)
    assert "forced" in load_weights(network, weights, force_base=True).text
    with pytest.raises(InputError, match="has no delta"):
        FinetuneConfig(force_base=True)


def test_a_delta_has_the_arrays_that_it_had_and_says_little_more(runs: Runs) -> None:
    with Npz(runs.delta("head")) as npz:
        assert npz.names() == ["head/kernel", "head/bias"]
        assert npz.others() == ["base.json"]
    record = read_record_at(runs.delta("head"))
    assert record is not None
    assert set(record.variables) == set(runs.last["head"]) - {"head/kernel", "head/bias"}
    assert set(record.began) == {"head/kernel", "head/bias"}


def test_the_delta_of_a_large_vit_is_small(tmp_path: pathlib.Path) -> None:
    assert SIZES["S"][0] == 384
    network = build_model("vit:S/16", image_shape=(224, 224, 3), outputs=10).network
    selection = select(network, "@head")
    path = tmp_path / "trained.npz"
    records.write_trained(path, selection.variables, [selection], class_names=[f"class number {n}" for n in range(10)])
    assert path.stat().st_size <= 20_000


def test_the_card_describes_the_run(runs: Runs, tmp_path: pathlib.Path) -> None:
    result, text = runs.results["head"], (runs.folder / "head/card.md").read_text()
    assert text.startswith("# vit:mini,depth=1 on ")
    assert result.selection.table() in text
    for said in (
        "Verified: 22 frozen variables kept every bit in their phase.",
        f"| evaluation loss, at the end | {result.run['final']['eval_loss']:.4f} |",
        "Evaluations used the averages",
        f"--weights={runs.base}+{runs.folder}/head/trained.npz",
        f"--flagfile={runs.folder}/head/flags.cfg",
    ):
        assert said in text
    # a run that failed, and texts that are not Markdown
    run = dict(result.run) | {"exit": {"code": 1, "reason": "a loss that is *not* finite"}}
    run["final"] = dict(run["final"]) | {"eval_loss": float("nan"), "test_class_accuracy": {"cat|dog\n<b>": 0.5}}
    write_card(tmp_path, run, stages=result.stages, evaluations=())
    text = (tmp_path / "card.md").read_text()
    assert "**The run did not finish: a loss that is \\*not\\* finite (exit code 1).**" in text
    assert "| test accuracy of cat\\|dog \\<b\\> | 0.5000 |" in text


def test_a_resumed_run_writes_the_same_delta(runs: Runs, tmp_path: pathlib.Path) -> None:
    config = runs.results["norm"].run["flags"]
    again = tmp_path / "norm"
    shutil.copytree(runs.folder / "norm", again)
    for path in (again / "trained.npz", again / "run.json"):
        path.unlink()
    fields = {key: value for key, value in config.items() if key not in ("out", "resume")}
    finetune(dataclasses.replace(FinetuneConfig(**fields), out=str(again), resume=True))
    assert (again / "trained.npz").read_bytes() == pathlib.Path(runs.delta("norm")).read_bytes()


def test_other_classes_take_the_head_of_a_delta_by_name(runs: Runs, tmp_path: pathlib.Path) -> None:
    model = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=2, seed=3)
    entries = name_variables(model.network)
    base = tmp_path / "base.npz"
    write_npz(base, values(model.network).items())
    selection = select(model.network, "@head")
    for entry in selection.trained:
        entry.variable.assign(np.arange(entry.size, dtype=np.float32).reshape(entry.shape))
    records.write_trained(tmp_path / "delta.npz", entries, [selection], class_names=["cat", "dog"])
    other = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=2, seed=9)
    loaded = load_weights(other, f"{base}+{tmp_path / 'delta.npz'}", classes=["dog", "cat"], image_shape=(8, 8, 1))
    assert "the head's classes are matched by name, since their order differs" in loaded.text
    head = values(model.network)["head/bias"]
    np.testing.assert_array_equal(values(other.network)["head/bias"], head[::-1])
    # a class that the delta does not have starts from the model's own value, not from that of the base
    third = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=2, seed=9)
    fresh = values(third.network)["head/kernel"]
    load_weights(third, f"{base}+{tmp_path / 'delta.npz'}", classes=["dog", "cow"], image_shape=(8, 8, 1))
    np.testing.assert_array_equal(values(third.network)["head/kernel"][:, 1], fresh[:, 1])
    fourth = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=2)
    said = load_weights(fourth, f"{base}+{tmp_path / 'delta.npz'}").text
    assert "its head is for cat and dog, in this order" in said


def test_statistics_that_moved_are_in_the_delta_and_others_in_its_base() -> None:
    import keras

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    model.add(keras.layers.Dense(2, name="head"))
    moving, still = select(model, "bn/.*"), select(model, "@head")
    assert any("moving_mean" in path for path in records.list_changing([moving]))
    record = take_record(still.variables, records.list_changing([still]))
    before = record.sha256
    assert any("moving_mean" in path for path in record.variables)
    next(e for e in still.variables if "moving_mean" in e.path).variable.assign(np.ones(4))
    assert take_record(still.variables, records.list_changing([still])).sha256 != before


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', '{"format": 1, "sha256": "x", "variables": {}, "began": {}}',
                                  '{"format": 1, "sha256": "' + 64 * "0" + '", "variables": {"a": "no"}, "began": {}}'])  # fmt: skip
def test_a_damaged_record_is_an_error(runs: Runs, tmp_path: pathlib.Path, text: str) -> None:
    with Npz(runs.delta("head")) as npz:
        write_npz(tmp_path / "d.npz", [(n, npz.read(n)) for n in npz.names()], packed={"base.json": text})
    with pytest.raises(InputError, match=r"base\.json"):
        runs.load(f"{runs.base}+{tmp_path / 'd.npz'}")
