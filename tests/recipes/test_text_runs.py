"""Runs on texts: trained, cached, evaluated, resumed from weights; and what is refused."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import made_bert
import numpy as np
import pytest
from run_figures import check_run_figures

from engine.data import open_data
from engine.errors import InputError
from engine.export.config import ExportConfig
from engine.export.opening import open_subject
from engine.export.run import export_run
from engine.recipes.evaluate import evaluate
from engine.recipes.evaluation_data import open_examples
from engine.recipes.opening import open_model
from engine.recipes.reopen import open_run
from engine.recipes.task import Task, find_tokenizer
from engine.selection.variables import name_variables
from engine.study.strategies import ModelStrategies
from engine.training.optimizers import layer_factors

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A model in tiny/, and reviews in reviews/: train.tsv and val.tsv."""
    place = tmp_path_factory.mktemp("texts")
    made_bert.make_folder(place / "tiny")
    made_bert.write_reviews(place / "reviews/train.tsv", 64)
    made_bert.write_reviews(place / "reviews/val.tsv", 20, seed=1)
    return place


def test_a_run_on_texts_is_cached_and_evaluated_to_the_bit(
    place: pathlib.Path, tmp_path: pathlib.Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    code, printed, error = call(
        f"--model=bert:{place}/tiny", f"--data=text:{place}/reviews", "--max_tokens=16", "--batch_size=16",
        "--train=@head", "--epochs=8", "--learning_rate=0.03", "--eval_every=32", f"--out={out}", "--cache=require",
    )  # fmt: skip
    assert code == 0, printed + error
    assert "text: train.tsv: text=text, label=label, with a line of names" in printed
    assert "the head reads the mean of the tokens" in printed
    run = json.loads((out / "run.json").read_text())
    assert run["freeze_proof"]["verified"]
    assert run["cache"]["used"]
    assert run["data"]["image_shape"] == [16]
    assert run["data"]["class_names"] == ["bad", "good"]
    opened = open_run(out)
    report = evaluate(opened, open_examples(opened))
    check_run_figures(opened, report)
    moved = made_bert.write_reviews(tmp_path / "moved.tsv", 12, seed=2)
    other = evaluate(opened, open_examples(opened, data=f"text:{moved}"))
    assert other.figures["data"]["part"] == "all"
    assert len(other.figures["confusions"]) == 2
    assert open_subject(out).inputs.what == "texts"
    with pytest.raises(InputError, match=r"format=keras: .* did not come from Keras"):
        export_run(ExportConfig(run=str(out), format="keras"))
    assert not (out / "export").exists()
    with pytest.raises(InputError, match=r"an example has image, but the model takes tokens"):
        open_examples(opened, data="fashion_mnist_mini")
    last = str(out / "checkpoints/step-00000032.npz")
    again = open_model(f"bert:{place}/tiny", last)  # a checkpoint alone says its classes
    assert again.class_names == ("bad", "good")


def test_a_head_is_matched_with_the_classes_of_a_checkpoint(
    place: pathlib.Path, tmp_path: pathlib.Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    given = [f"--model=bert:{place}/tiny", "--batch_size=16", "--steps=1", "--train=@head", "--eval_fraction=0.3"]
    code, _, error = call(*given, f"--data=text:{place}/reviews/train.tsv", f"--out={out}")
    assert code == 0, error
    text = (place / "reviews/train.tsv").read_text().replace("\tgood", "\ta good one")
    (tmp_path / "renamed.tsv").write_text(text)
    task = Task.open(
        model=f"bert:{place}/tiny",
        data=f"text:{tmp_path}/renamed.tsv",
        weights=out / "checkpoints/step-00000001.npz",
        batch_size=16,
    )
    assert task.weights is not None
    assert "the head's classes are matched by name; a good one starts anew" in task.weights.text


def test_strategies_and_layer_decay_see_the_blocks_of_an_encoder(place: pathlib.Path) -> None:
    task = Task.open(model=f"bert:{place}/tiny", data=f"text:{place}/reviews", weights=None, batch_size=16)
    known = ModelStrategies(task.variables, task.model.statistics, network=task.model.network)
    names = known.names()
    assert {"head", "last_1", "last_2", "bias", "norms", "attention", "gradual", "full", "lora", "adapter"} <= set(
        names
    )
    for name in names:
        known.strategy(name)
    factors = layer_factors(task.variables, 0.5)
    ordered = [factors[f"{part}/kernel"] for part in ("head", "blocks/1/mlp/up", "blocks/0/mlp/up")]
    assert ordered == [1.0, 0.5, 0.25]
    assert factors["embeddings/word_embedding"] == 0.125


def test_a_tokenizer_that_does_not_fit_stops_before_training(
    place: pathlib.Path, tmp_path: pathlib.Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    folder = made_bert.make_folder(tmp_path / "other", words=(*made_bert.WORDS, "more"))
    cases: list[tuple[list[str], str]] = [
        ([f"--model=bert:{folder}"], "27 word pieces, but the model's table of words has 26 rows"),
        ([f"--model=bert:{place}/tiny", "--max_tokens=25"], "max_tokens=25: expected 8 to 24"),
        ([f"--model=bert:{place}/none"], "none is not a folder"),
        (["--model=cnn:mini", "--weights=none"], "the model brings no tokenizer"),
        ([f"--model=bert:{place}/tiny", "--augment=flip"], "augment=flip: the data have no images, only tokens"),
        ([f"--model=bert:{place}/tiny", "--head=gap"], "head='gap'"),
    ]
    for given, message in cases:
        code, printed, error = call(*given, f"--data=text:{place}/reviews", f"--out={tmp_path}/run")
        assert code == 2, printed
        assert message in error
        assert not (tmp_path / "run").exists()
    code, _, error = call(f"--model=bert:{place}/tiny", f"--out={tmp_path}/run")
    assert code == 2
    assert "reads texts, but an example of these data has shape [28, 28, 1]; expected --data=text:PATH" in error
    with pytest.raises(InputError, match="max_tokens=9: it is about texts, and data=fashion_mnist_mini"):
        Task.open(data="fashion_mnist_mini", model="vit:mini", max_tokens=9)


def test_the_length_is_also_that_of_a_tokenizer_that_the_data_name(place: pathlib.Path) -> None:
    spec = f"text:{place}/reviews,tokenizer={place}/tiny"
    for length, wanted in ((9, 9), (None, 128)):
        source = open_data(spec, tokenizer=find_tokenizer("py:a:b", spec, length), say=lambda line: None)
        assert source.image_shape == (wanted,)


def test_classes_are_not_taken_for_numbers(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [f"{text}\t{1 + n % 3}" for n, (text, _) in enumerate(made_bert.make_reviews(40))]
    (tmp_path / "stars.tsv").write_text("\n".join(["text\tlabel", *rows]))
    given: dict[str, Any] = {"model": f"bert:{place}/tiny", "weights": None, "loss": "mse", "batch_size": 8}
    with pytest.raises(
        InputError, match=r"the loss mse needs numbers, but the labels are the classes .*of texts target=COLUMN"
    ):
        Task.open(data=f"text:{tmp_path}/stars.tsv", **given)
    task = Task.open(data=f"text:{tmp_path}/stars.tsv,target=label", **given)
    assert set(task.source.train.labels) == {1.0, 2.0, 3.0}
    assert task.model.outputs == 1


def test_a_pair_of_texts_trains_a_model_with_token_types(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [f"{text}\tgood film {n}\t{label}" for n, (text, label) in enumerate(made_bert.make_reviews(40))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]))
    task = Task.open(model=f"bert:{place}/tiny", data=f"text:{tmp_path}/pairs.tsv", batch_size=8)
    batch: Any = task.train_batches().at(0)
    assert {"tokens", "types"} <= set(batch)
    logits = task.model.network({name: batch[name] for name in ("tokens", "types")}).numpy()
    without = task.model.network(batch["tokens"]).numpy()
    assert logits.shape == (8, 2)
    assert not np.allclose(logits, without)
    assert len(name_variables(task.model.network)) == 39
