"""An evaluation of a run has the run's own figures to the bit, and those that its outputs give."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
from run_figures import check_run_figures

from engine.data.corruptions import corrupted, parse
from engine.data.source import open_data
from engine.errors import InputError
from engine.models.registry import build_model
from engine.recipes.config import FinetuneConfig
from engine.recipes.evaluate import Report, evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import finetune
from engine.recipes.predictor import PredictionError
from engine.recipes.reopen import OpenedRun, open_run
from engine.runs import picture, records
from engine.runs.saved_flags import DataFacts
from engine.selection.variables import name_variables
from engine.training.metrics import measure_auc
from engine.training.precision import parse as parse_precision

FIELDS = {"model": "cnn:mini", "weights": "none", "train": "@all", "batch_size": 8, "steps": 3, "seed": 2}


def opened_run(folder: pathlib.Path, **fields: Any) -> OpenedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "draw_curves", lambda *_: None)
        patch.setattr(picture, "draw", lambda *_: None)
        finetune(FinetuneConfig(**FIELDS | {"out": str(folder / "run")} | fields))
    return open_run(folder / "run", averages=fields.get("ema") is not None)


def figures(opened: OpenedRun, **given: Any) -> tuple[Report, list[str]]:
    said: list[str] = []
    examples = open_examples(opened, say=said.append, **given)
    return evaluate(opened, examples), said


KINDS: dict[str, dict[str, Any]] = {
    "averages, smoothed labels, micro-batches, two phases": {
        "ema": 0.6, "label_smoothing": 0.1, "micro_batches": 3, "phase": ("name=a train=@head steps=1", "name=b train=@all steps=1"),
        "train": None, "steps": None,
    },
    "cut at the frost line": {"model": "vit:mini,depth=2", "train": "@blocks[-1:] @head", "cache": "require"},
    "16 bits": {"precision": "mixed_bfloat16", "train": "@head stages/3/.*"},
    "64 bits": {"precision": "float64", "train": "@head"},
    "of Keras": {"model": "keras:MobileNetV2,alpha=0.35", "image_size": "32", "train": "@head", "steps": 2},
}  # fmt: skip


@pytest.mark.slow  # tests/scripts/test_evaluate.py has a quick member
@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_of_a_run_come_back_to_the_bit_or_from_a_cache_up_to_rounding(
    kind: str, small_data: pathlib.Path, tmp_path: pathlib.Path, deterministic_ops: None
) -> None:
    opened = opened_run(tmp_path, data=f"npz:{small_data}", eval_fraction=0.3, **KINDS[kind])
    for part, name, count in (("eval", "evaluation", 18), ("test", "test", 21)):
        report, said = figures(opened, part=part)
        check_run_figures(opened, report)
        assert report.figures["loss"] == opened.run["final"][f"{part}_loss"]
        assert said == [f"data:    npz:{small_data}, {count} examples ({name} part, of the run's own data)"]


def untrained(loss: str, outputs: int, names: tuple[str, ...] | None = None) -> OpenedRun:
    """A small model of random weights for images of 16x16 pixels in grey, as if a run had trained it."""
    model = build_model("cnn:mini", image_shape=(16, 16, 1), outputs=outputs, logits=loss != "mse", seed=2)
    facts = DataFacts(
        image_shape=(16, 16, 1),
        outputs=outputs,
        class_names=names,
        columns=None,
        images=None,
        eval_size=64,
        fingerprint=None,
    )
    return OpenedRun(
        path=None,
        config=FinetuneConfig(model="cnn:mini", loss=loss),
        run={},
        model=model,
        variables=name_variables(model.network),
        data=facts,
        numbers=parse_precision("float32"),
        weights="random",
    )


@pytest.fixture(scope="module")
def made(small_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Data for the losses sigmoid (two classes; several labels) and mse, each an .npz file."""
    folder = tmp_path_factory.mktemp("made")
    with np.load(small_data) as npz:
        arrays = {name: npz[name] for name in npz.files}
    labels = {name: array for name, array in arrays.items() if "labels" in name}
    several = {name: np.eye(3, dtype=np.int64)[array] | (np.arange(len(array)) % 2)[:, None] for name, array in labels.items()}  # fmt: skip
    np.savez(folder / "two.npz", **arrays | {name: np.minimum(array, 1) for name, array in labels.items()})
    np.savez(folder / "several.npz", **arrays | several, class_names=np.array(["dark", "long", "shoe"]))
    np.savez(
        folder / "values.npz", **arrays | {name: np.stack([array, 2.0 - array], 1) for name, array in labels.items()}
    )
    return folder


@pytest.mark.parametrize(("name", "loss"), [("two", "sigmoid"), ("several", "sigmoid"), ("values", "mse")])
def test_other_losses_have_the_figures_that_suit_them(name: str, loss: str, made: pathlib.Path) -> None:
    names = ("dark", "long", "shoe") if name == "several" else None
    opened = untrained(loss, {"two": 1, "several": 3, "values": 2}[name], names)
    examples = open_examples(opened, data=f"npz:{made}/{name}.npz")
    assert (examples.name, examples.own) == ("test", False)
    chosen = parse("contrast:3,noise:1,noise:3")
    done: list[int] = []
    report = evaluate(opened, examples, corrupt=chosen, seed=3, progress=done.append)
    found, labels = report.figures, examples.part.labels
    assert done[-1] == 4 * 21
    shifted = found["corruptions"]
    for seen, each in zip(chosen, shifted["each"], strict=True):
        alone = dataclasses.replace(examples, part=corrupted(examples.part, *seen, seed=3))
        again = evaluate(opened, alone).figures
        assert each == seen._asdict() | {key: again[key] for key in shifted["mean"]}
    losses = [each["loss"] for each in shifted["each"]]
    assert shifted["mean"]["loss"] == np.mean([losses[0], np.mean(losses[1:])])
    assert shifted["seed"] == 3
    assert ("calibration_error" in shifted["mean"]) == (name == "two")
    values = opened.predictor()(examples.part.read(np.arange(21))["image"])
    if name == "two":
        assert report.names == ("0", "1")
        assert found["auc"] == measure_auc(values[:, 1], labels == 1)
        assert np.trace(report.confusions) / 21 == found["accuracy"]
    elif name == "several":
        assert [each["name"] for each in found["labels"]] == ["dark", "long", "shoe"]
        assert found["labels"][1]["auc"] == measure_auc(values[:, 1], labels[:, 1] == 1)
        assert found["labels"][0]["predicted"] == (values > 0.5)[:, 0].sum()
        assert report.confusions is None
    else:
        errors = values - labels
        assert found["accuracy"] is None
        assert found["columns"][1]["mean_absolute_error"] == pytest.approx(np.abs(errors[:, 1]).mean(), rel=1e-6)
        assert found["loss"] == pytest.approx((errors**2).mean(), rel=1e-6)
        assert found["columns"][0]["r_squared"] == pytest.approx(
            1 - (errors[:, 0] ** 2).mean() / labels[:, 0].var(), rel=1e-5
        )


def test_other_data_are_matched_by_the_names_of_their_classes(
    small_data: pathlib.Path, tmp_path: pathlib.Path, photos: pathlib.Path
) -> None:
    with np.load(small_data) as npz:
        arrays = {name: npz[name] for name in npz.files}
    names = np.array(["trouser", "boot", "bag"])
    np.savez(tmp_path / "named.npz", **arrays, class_names=names)
    opened = untrained("softmax", 3, tuple(names))
    own = open_data(f"npz:{tmp_path}/named.npz")
    flags = FinetuneConfig(data=f"npz:{tmp_path}/named.npz")
    facts = dataclasses.replace(opened.data, fingerprint=own.fingerprint())
    opened = dataclasses.replace(opened, path=tmp_path, config=flags, data=facts)
    examples = open_examples(opened, data=f"folder:{photos}", say=(said := []).append)  # type: ignore[var-annotated]
    assert (examples.name, examples.own, len(examples.part)) == ("eval", False, 21)
    assert "data:    the classes are matched with those of the model by their names" in said
    assert examples.part.labels.tolist() == [2] * 7 + [1] * 7 + [0] * 7
    batch = examples.part.read(np.arange(2))
    assert batch["image"].shape == (2, 16, 16, 1)  # a run on grey images
    assert evaluate(opened, examples).figures["run_figures"] is None
    undivided = open_examples(opened, data=f"folder:{photos}/val")
    assert (undivided.name, len(undivided.part)) == ("all", 21)
    moved = (tmp_path / "named.npz").rename(tmp_path / "moved.npz")
    assert open_examples(opened, data=f"npz:{moved}").own
    with pytest.raises(InputError, match="are not there; --data says where they are now"):
        open_examples(opened)
    (tmp_path / "cats/cat").mkdir(parents=True)
    (tmp_path / "cats/bag").mkdir()
    for name in ("cat", "bag"):
        (tmp_path / f"cats/{name}/a.png").write_bytes((photos / "val/bag/bag1.png").read_bytes())
    with pytest.raises(InputError, match="the model knows no class cat; its classes are trouser, boot and bag"):
        open_examples(opened, data=f"folder:{tmp_path}/cats")
    for part, reason in (
        ("al", "expected one of eval, test, train, all; nearest: all"),
        ("all", "it is divided|is divided"),
    ):
        with pytest.raises(InputError, match=reason):
            open_examples(opened, data=f"folder:{photos}", part=part)
    head = opened.variables.by_path()["head/bias"].variable
    head.assign([np.nan, 0.0, 0.0])
    with pytest.raises(PredictionError, match="not finite for 21 of 21 examples"):
        evaluate(opened, examples)


@pytest.mark.parametrize("name", ["several", "values"])
def test_columns_of_labels_in_another_order_are_matched_by_their_names(
    name: str, made: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    names = ("dark", "long", "shoe") if name == "several" else ("low", "high")
    opened = untrained("sigmoid" if name == "several" else "mse", len(names), names if name == "several" else None)
    if name == "values":
        opened = dataclasses.replace(opened, data=dataclasses.replace(opened.data, columns=names))
    with np.load(made / f"{name}.npz") as npz:
        arrays = {each: npz[each] for each in npz.files}
    turned = {each: array[:, ::-1] for each, array in arrays.items() if "labels" in each}
    np.savez(tmp_path / "a.npz", **arrays | {"class_names": np.array(names)})
    np.savez(tmp_path / "b.npz", **arrays | turned | {"class_names": np.array(names[::-1])})
    np.savez(tmp_path / "c.npz", **arrays | {"class_names": np.array(["other", *names[1:]])})
    one = open_examples(opened, data=f"npz:{tmp_path}/a.npz").part.labels
    np.testing.assert_array_equal(open_examples(opened, data=f"npz:{tmp_path}/b.npz").part.labels, one)
    with pytest.raises(InputError, match=r"its columns of labels are other.* but the outputs of the model are"):
        open_examples(opened, data=f"npz:{tmp_path}/c.npz")
