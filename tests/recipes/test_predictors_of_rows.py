"""Predictors of texts and vectors in Python: prepared as the run prepared its own, or refused where that is not known."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import made_bert
import numpy as np
import pytest
import row_runs
from tensorflow.python.framework import config  # there is no public way to switch op determinism off again

from engine.data.features import find_features
from engine.data.part import DataError
from engine.data.source import open_data
from engine.errors import InputError
from engine.recipes.evaluation_data import open_examples
from engine.recipes.finetune import RunResult
from engine.recipes.reopen import open_run

pytest.importorskip("tokenizers", reason="the extra text (package tokenizers) is not installed")
TEXTS = ["a good film", "the plot was dull , very dull"]
VECTORS = np.array([[0.5, 12.0, -80.0], [-1.5, np.nan, 10.0]])


class Runs:
    def __init__(self, place: pathlib.Path, texts: RunResult, vectors: RunResult) -> None:
        self.place, self.texts, self.vectors = place, texts, vectors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    place = tmp_path_factory.mktemp("rows")
    table = row_runs.write_table(place / "table.csv")
    (place / "row_networks.py").write_text(row_runs.NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        texts = row_runs.on_texts(place, f"text:{place}/reviews", out=place / "texts")
        vectors = row_runs.train(place / "vectors", data=f"table:{table},standardise", **row_runs.ON_TABLES)
        yield Runs(place, texts, vectors)
    config.disable_op_determinism()


def forget(run: pathlib.Path, to: pathlib.Path, *names: str) -> pathlib.Path:
    """A copy of a run that did not record some facts of its data, as an earlier version would have left it."""
    shutil.copytree(run, to)
    found = json.loads((to / "flags.json").read_text())
    for name in names:
        del found["data"][name]
    (to / "flags.json").write_text(json.dumps(found))
    return to


def test_a_run_and_its_folder_give_the_same_predictor(runs: Runs) -> None:
    for result, examples in ((runs.texts, TEXTS), (runs.vectors, VECTORS)):
        found = result.predictor()(examples)
        np.testing.assert_array_equal(found, open_run(result.out).predictor()(examples))
        assert found.shape == (2, 2)
    texts = open_run(runs.texts.out).predictor()
    np.testing.assert_array_equal(texts(np.array(TEXTS)), texts(tuple(TEXTS)))
    np.testing.assert_array_equal(texts(TEXTS * 40)[78:], texts(TEXTS))


def test_what_is_no_text_or_no_vector_is_refused(runs: Runs) -> None:
    texts, vectors = runs.texts.predictor(), runs.vectors.predictor()
    cases: list[tuple[Any, Any, str]] = [
        (texts, "good", r"texts='good': expected a list of texts; \[TEXT\] has one"),
        (texts, [("a", "b")], r"texts\[0\]=\('a', 'b'\): expected a text, as the run was trained on"),
        (texts, np.zeros([2, 12], np.int32), r"texts\[0\]=.*: expected a text"),
        (vectors, VECTORS[:, :2], r"vectors: shape \[2, 2\]; expected \[n, 3\]"),
        (vectors, np.array([[1.0, np.inf, 0.0]]), "vectors holds NaN or infinity"),
        (vectors, TEXTS, "expected numbers"),
    ]
    for predictor, given, message in cases:
        with pytest.raises(DataError, match=message):
            predictor(given)


def test_the_moments_of_a_run_are_recorded_to_the_bit(runs: Runs, tmp_path: pathlib.Path) -> None:
    own = find_features(runs.vectors.task.source.train)
    assert own is not None
    recorded = open_run(runs.vectors.out).data.moments
    np.testing.assert_array_equal(np.array(recorded), own.moments)
    source = open_data(
        f"table:{runs.place}/table.csv,standardise", say=lambda line: None, images=runs.vectors.task.image_options
    )
    again = find_features(source.train)
    assert again is not None
    np.testing.assert_array_equal(own.moments, again.moments)


def test_a_run_that_recorded_no_moments_takes_those_of_its_data_or_is_refused(
    runs: Runs, tmp_path: pathlib.Path
) -> None:
    old = open_run(forget(runs.vectors.out, tmp_path / "old", "moments"))
    wanted = runs.vectors.predictor()(VECTORS)
    np.testing.assert_array_equal(old.predictor()(VECTORS), wanted)
    file = runs.place / "table.csv"
    kept = file.read_text()
    try:
        row_runs.write_table(file, seed=4)
        with pytest.raises(
            InputError, match=r"did not record by which mean .* have changed since.* Put the run's own back"
        ):
            old.predictor()(VECTORS)
        np.testing.assert_array_equal(open_run(runs.vectors.out).predictor()(VECTORS), wanted)
        file.unlink()
        with pytest.raises(
            InputError, match=r"are not there to tell\. Put them back, and --resume --out=.*/old records it"
        ):
            old.predictor()(VECTORS)
        np.testing.assert_array_equal(open_run(runs.vectors.out).predictor()(VECTORS), wanted)
    finally:
        file.write_text(kept)


@pytest.mark.parametrize("change", ["words", "settings"])
def test_a_tokenizer_that_changed_since_the_run_is_refused(change: str, runs: Runs, tmp_path: pathlib.Path) -> None:
    old = open_run(forget(runs.texts.out, tmp_path / "old", "texts"))
    wanted = runs.texts.predictor()(TEXTS)
    place, opened = runs.place / "tiny", open_run(runs.texts.out)
    kept = (place / "vocab.txt").read_text()
    try:
        if (
            change == "words"
        ):  # two words exchange their numbers: as many as before, and all special ones in their places
            text = "\n".join({"good": "bad", "bad": "good"}.get(word, word) for word in made_bert.WORDS)
            (place / "vocab.txt").write_text(text)
        else:
            (place / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        message = r"tiny: the tokenizer is not the one that the run was trained with \(its vocab\.txt, or a setting"
        with pytest.raises(DataError, match=message):
            opened.predictor()(TEXTS)
        with pytest.raises(DataError, match=message):
            open_examples(opened)
        with pytest.raises(DataError, match=message):
            open_examples(opened, data=f"text:{runs.place}/reviews/val.tsv")
        assert old.predictor()(TEXTS).shape == (2, 2), "a run that did not record its tokenizer cannot tell"
    finally:
        (place / "vocab.txt").write_text(kept)
        (place / "tokenizer_config.json").unlink(missing_ok=True)
    np.testing.assert_array_equal(open_run(runs.texts.out).predictor()(TEXTS), wanted)
    np.testing.assert_array_equal(old.predictor()(TEXTS), wanted)


def test_damaged_facts_are_named(runs: Runs, tmp_path: pathlib.Path) -> None:
    for name, value in (("texts", {"columns": [1], "count": 1, "tokenizer": ""}), ("moments", [[1.0], [1.0, 2.0]])):
        run = forget(runs.texts.out, tmp_path / name)
        found = json.loads((run / "flags.json").read_text())
        found["data"][name] = value
        (run / "flags.json").write_text(json.dumps(found))
        with pytest.raises(InputError, match=r"flags\.json: damaged, or of another version"):
            open_run(run)
