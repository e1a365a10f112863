"""Quality studies as a whole: that a trial is a plain run, that they repeat, go on, and judge once."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from small_studies import run_small, write_data, write_weights

from engine import tensorflow_private
from engine.data.part import Part
from engine.errors import InputError
from engine.feature_cache import decision
from engine.recipes.config import FinetuneConfig
from engine.recipes.finetune import finetune
from engine.study import registry
from engine.study.job import StudyError
from engine.study.quality.trial import Trial
from engine.study.run import StudyListener, StudyResult

ALL = [
    "head",
    "last_1",
    "bias",
    "full",
    "lp_ft",
    "l2_sp",
    "layer_decay",
    "lora",
    "ssf",
    "adapter",
    "auto_freeze",
    "head+wise_ft",
]
LORA = "lora_2"
ONE = {"model": "vit:mini,depth=1"}  # for strategies that tell no blocks apart: half the time of two blocks


@pytest.fixture(scope="module", autouse=True)
def _small_work_pays() -> Iterator[None]:
    """Caches pay for networks as small as these too. Studies switch determinism on, and later tests need it off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decision, "_PREPARING", 0.0)
        yield
    tensorflow_private.disable_op_determinism()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> StudyResult:
    """A study with two seeds, whose trials train together from kept features."""
    return run_two_seeds(tmp_path_factory, small_data, ["head", "head+wise_ft"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_data: pathlib.Path) -> StudyResult:
    """The same with strategies of all kinds, which also train one after the other and without features."""
    return run_two_seeds(tmp_path_factory, small_data, ["head", "last_1", "full", "lp_ft", LORA, "head+wise_ft"])


def run_two_seeds(factory: pytest.TempPathFactory, data: pathlib.Path, names: list[str]) -> StudyResult:
    out = factory.mktemp("study") / "out"
    weights = write_weights(out.parent / "body.npz", data)
    return run_small(out, data, strategies=names, seeds=2, weights=str(weights))


def rows_of(study: StudyResult) -> dict[str, Mapping[str, Any]]:
    return {row["strategy"]: row for row in study.study["results"]}


def read_command(command: str) -> FinetuneConfig:
    """The configuration that a command line gives."""
    name, program, *words = shlex.split(command)
    assert (name, program) == ("frostline", "finetune")
    given: dict[str, Any] = {}
    kinds = {field.name: str(field.type) for field in FinetuneConfig.__dataclass_fields__.values()}
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        kind = kinds[key].split(" | ")[0]
        made = int(value) if kind == "int" else float(value) if kind == "float" else value
        given[key] = (*given.get(key, ()), value) if key == "phase" else made
    return FinetuneConfig(**given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("study", "head"),
        *(pytest.param("whole", name, marks=pytest.mark.slow) for name in ("last_1", "full", "lp_ft", LORA)),
    ],
)
def test_the_command_of_a_choice_gives_the_same_bits_as_a_plain_run(
    request: pytest.FixtureRequest, given: str, name: str, tmp_path: pathlib.Path
) -> None:
    row = rows_of(request.getfixturevalue(given))[name]
    seed = 1 if name in ("head", "full") else 0
    config = read_command(row["quality"]["chosen"]["commands"][seed])
    assert config.seed == seed
    result = finetune(FinetuneConfig(**{**vars(config), "out": str(tmp_path / "run")}))
    final, test = result.run["final"], row["quality"]["test"]["seeds"][seed]
    best = next(r for r in row["quality"]["rates"] if r["learning_rate"] == config.learning_rate)
    mine = best["seeds"][seed]
    assert [p["eval_loss"] for p in mine["points"]] == [e.loss for e in result.evaluations]
    assert (final["eval_loss"], final["eval_accuracy"]) == (mine["eval_loss"], mine["eval_accuracy"])
    assert (final["test_loss"], final["test_accuracy"]) == (test["loss"], test["accuracy"])


@pytest.mark.parametrize("given", ["study", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_row_holds_what_was_searched_and_judged(request: pytest.FixtureRequest, given: str) -> None:
    study: StudyResult = request.getfixturevalue(given)
    rows = rows_of(study)
    assert json.loads((study.out / "results.json").read_text()) == study.study["results"]
    for name, row in rows.items():
        found = row["quality"]
        assert row["freeze_verified"] is True
        assert not row["failed"]
        assert [rate["learning_rate"] for rate in found["rates"]] == [1e-3, 1e-2]
        assert all(len(rate["seeds"]) == 2 and rate["status"] == "done" for rate in found["rates"])
        best = max(found["rates"], key=lambda rate: (rate["eval_accuracy"], -rate["eval_loss"]))
        assert found["chosen"]["learning_rate"] == best["learning_rate"]
        assert row["eval_accuracy"] == best["eval_accuracy"]
        test = found["test"]
        assert (test["part"], test["examples"]) == ("test", 30)
        assert test["accuracy"] == pytest.approx(np.mean([seed["accuracy"] for seed in test["seeds"]]))
        counted = sum(each["examples"] * each["accuracy"] for each in test["classes"]) / 30
        assert counted == pytest.approx(test["accuracy"])
        assert len(found["shifted"]["each"]) == 2
        assert {each["with"] for each in found["compared"]} == set(rows) - {name}
    named = [name for name in ("head", LORA, "full") if name in rows]
    sizes = [rows[name]["trained_parameters"] for name in named]
    assert sizes == sorted(set(sizes))
    assert study.study["quality"]["verdict"]["recommended"] in rows
    assert study.study["quality"]["same_part"] is False


def test_averaged_weights_are_those_of_their_strategy_in_some_share(study: StudyResult) -> None:
    rows = rows_of(study)
    ratios = rows["head+wise_ft"]["quality"]["chosen"]["ratios"]
    assert [each["seed"] for each in ratios] == [0, 1]
    assert all(0 <= each["ratio"] <= 1 for each in ratios)
    assert rows["head+wise_ft"]["quality"]["rates"] == rows["head"]["quality"]["rates"]
    assert "--interpolate=auto" in rows["head+wise_ft"]["quality"]["chosen"]["command"]


def cached_by(study: StudyResult) -> tuple[int, dict[str, list[bool]]]:
    """How many caches there are, and which phases of each strategy trained from one."""
    caches = [path for path in (study.out / "feature_cache").iterdir() if path.is_dir()]
    records = [json.loads(path.read_text()) for path in (study.out / "quality/trials").glob("*.json")]
    return len(caches), {record["strategy"]: record["cached"] for record in records}


def test_the_features_of_all_strategies_and_seeds_are_computed_once(study: StudyResult) -> None:
    assert cached_by(study) == (2, {"head": [True]})  # below the head; of two parts


@pytest.mark.slow
def test_the_features_below_each_line_are_computed_once(whole: StudyResult) -> None:
    count, cached = cached_by(whole)
    assert count == 4  # below the head and below the last block; of two parts
    assert cached == {"head": [True], "last_1": [True], "full": [False], "lp_ft": [True, False], LORA: [False]}


class Counting(StudyListener):
    """Counts what is done, and stops a study after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps, self.started, self.judged, self._after = 0, 0, 0, stop_after

    def trial_started(self, trial: Trial) -> None:
        self.started += 1

    def trial_step(self, trial: Trial, step: int, steps: int) -> None:
        self.steps += 1

    def judging(self, strategy: str, done: int, passes: int) -> None:
        self.judged += done == 0

    def should_stop(self) -> bool:
        return self._after is not None and self.steps >= self._after


def without_seconds(value: Any) -> Any:
    """A study without what depends on the clock and the folder."""
    if isinstance(value, Mapping):
        left_out = ("seconds", "search_seconds", "command", "commands", "verdict", "reason")
        return {key: without_seconds(each) for key, each in value.items() if key not in left_out}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


def test_a_study_that_was_stopped_goes_on_to_the_same_end(tmp_path: pathlib.Path, small_data: pathlib.Path) -> None:
    given: dict[str, Any] = {"strategies": ["head", "full"], "search": "halving", "corrupt": "none", **ONE}
    whole = run_small(tmp_path / "whole", small_data, **given)
    stopped = run_small(tmp_path / "part", small_data, listener=Counting(19), **given)
    assert stopped.stopped
    assert stopped.study["quality"]["verdict"] is None
    again = Counting()
    ended = run_small(tmp_path / "part", small_data, listener=again, **given)
    assert not ended.stopped
    assert again.started == 1  # of full, with the rate that was not dropped; all others are kept
    assert without_seconds(ended.study["results"]) == without_seconds(whole.study["results"])
    third = Counting()
    run_small(tmp_path / "part", small_data, listener=third, **given)
    assert (third.started, third.judged) == (0, 0)  # the test part is not touched again
    dropped = [
        rate for row in ended.study["results"] for rate in row["quality"]["rates"] if rate["status"] == "dropped"
    ]
    assert [rate["steps"] for rate in dropped] == [2, 2]
    assert not list((tmp_path / "part/quality/weights").glob("*.npz"))


def test_other_settings_in_the_same_folder_are_refused(tmp_path: pathlib.Path, small_data: pathlib.Path) -> None:
    given: dict[str, Any] = {"strategies": ["head"], "learning_rates": "1e-2", "steps": 2, "corrupt": "none", **ONE}
    run_small(tmp_path / "out", small_data, **given)
    with pytest.raises(StudyError, match=r"holds another study, which these settings contradict:\n +quality: "):
        run_small(tmp_path / "out", small_data, **given | {"learning_rates": "1e-2,1e-3"})
    (tmp_path / "out/quality/judged/head.npz").write_bytes(b"PK")
    with pytest.raises(StudyError, match=r"head\.npz: .*; remove it and head\.json beside it"):
        run_small(tmp_path / "out", small_data, **given)
    run_small(tmp_path / "out", small_data, **given | {"strategies": ["mine=@head"]})
    with pytest.raises(StudyError, match="it holds a trial of a strategy 'mine' that trained otherwise"):
        run_small(tmp_path / "out", small_data, **given | {"strategies": ["mine=@bias"]})


@pytest.mark.slow
def test_rates_that_diverge_are_marked_and_not_chosen(tmp_path: pathlib.Path, small_data: pathlib.Path) -> None:
    given: dict[str, Any] = {
        "strategies": ["head", "full"],
        "learning_rates": "1e-2,1e30",
        "steps": 4,
        "corrupt": "none",
        **ONE,
    }
    rows = rows_of(run_small(tmp_path / "out", small_data, **given))
    for row in rows.values():
        low, high = row["quality"]["rates"]
        assert (low["status"], high["status"]) == ("done", "diverged")
        assert high["reason"]
        assert row["quality"]["chosen"]["learning_rate"] == 1e-2
        assert row["quality"]["chosen"]["edge"] == "lowest"
    given |= {"learning_rates": "1e30", "strategies": ["full"]}
    result = run_small(tmp_path / "other", small_data, **given)
    (row,) = result.study["results"]
    assert row["failed"]
    assert "diverge" in row["reason"]
    assert result.study["quality"]["verdict"]["recommended"] is None


def test_without_a_test_part_the_evaluation_part_judges_and_the_study_says_so(
    tmp_path: pathlib.Path,
) -> None:
    data = write_data(tmp_path / "data.npz", parts=("train", "val"))
    given: dict[str, Any] = {"strategies": ["head"], "learning_rates": "1e-2", "steps": 2, "corrupt": "none", **ONE}
    result = run_small(tmp_path / "out", data, **given)
    assert result.study["quality"]["same_part"] is True
    (row,) = result.study["results"]
    assert (row["quality"]["test"]["part"], row["quality"]["test"]["examples"]) == ("evaluation", 24)
    assert row["quality"]["test"]["accuracy"] == row["eval_accuracy"]


def test_the_test_part_is_read_only_by_the_judge(
    tmp_path: pathlib.Path, small_data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    judged: list[str] = []
    whole = Part.read

    def note(part: Part, *given: Any, **more: Any) -> Any:
        if len(part) == 30:
            read.append(judged[-1] if judged else "the search")
        return whole(part, *given, **more)

    monkeypatch.setattr(Part, "read", note)

    class Judging(StudyListener):
        def judging(self, strategy: str, done: int, passes: int) -> None:
            judged.append(strategy)

    run_small(tmp_path / "out", small_data, strategies=["head", "full"], listener=Judging(), **ONE)
    assert set(read) == {"head", "full"}
    assert read == sorted(read, key=["head", "full"].index)  # each once, at the end


def test_auto_finds_rates_by_a_range_test_and_goes_on_beyond_the_end(
    tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    given: dict[str, Any] = {"strategies": ["head"], "learning_rates": "auto", "steps": 4, "corrupt": "none", **ONE}
    (row,) = run_small(tmp_path / "out", small_data, **given).study["results"]
    found = row["quality"]
    origins = [rate["origin"] for rate in found["rates"]]
    assert origins.count("range test") == 3
    assert origins.count("extension") <= 2
    middle = [rate["learning_rate"] for rate in found["rates"] if rate["origin"] == "range test"][1]
    assert middle == found["range_test"]["suggested"]
    (quick,) = run_small(tmp_path / "quick", small_data, **given, quick=True).study["results"]
    assert len(quick["quality"]["rates"]) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "cost", "seeds": 2}, "seeds=2: it is not used by --mode=cost; give --mode=quality or --mode=both"),
        ({"runners": ["engine"]}, "it is not used by --mode=quality; give --mode=cost or --mode=both"),
        ({"learning_rate": 1e-2}, "learning_rate=0.01: it is not used by --mode=quality"),
        ({"mode": "qualty"}, "mode='qualty': expected cost, quality or both"),
        ({"search": "random"}, "search='random': expected grid or halving"),
        ({"eval_examples": 8}, "eval_examples=8: --mode=quality chooses by all evaluation examples"),
        ({"corrupt": "fog:1"}, "`fog:1`"),
        ({"seeds": 0}, "seeds=0"),
        ({"schedule": "linear?"}, "linear?"),
        ({"strategies": ["head+wise_ft+wise_ft"]}, "wise_ft appears twice"),
        ({"strategies": ["lora_4096"]}, "lora"),
        ({"strategies": ["lora"], "model": "cnn:tiny-no"}, "cnn"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(
    given: dict[str, Any], message: str, tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
    settings = {"learning_rates": "auto", "corrupt": "auto"} if given.get("mode") == "cost" else {}
    with pytest.raises(InputError) as caught:
        run_small(tmp_path / "out", small_data, **settings | given)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_strategy_is_searched_and_judged(tmp_path: pathlib.Path, small_data: pathlib.Path) -> None:
    rows = rows_of(run_small(tmp_path / "out", small_data, strategies=ALL, steps=4))
    assert list(rows) == ALL
    assert all(row["freeze_verified"] and not row["failed"] for row in rows.values())


@pytest.mark.slow
def test_both_modes_join_quality_and_cost(tmp_path: pathlib.Path, small_data: pathlib.Path) -> None:
    names = ["head", LORA, "head+wise_ft"]
    given: dict[str, Any] = {"mode": "both", "runners": ["engine", "engine_cached", "v1_var_list"], "repeats": 1}
    registry.register_runner("v1_var_list", "compat_v1.training.study_runner:VarListRunner")
    result = run_small(tmp_path / "out", small_data, strategies=names, **given)
    rows = {(row["strategy"], row["runner"]): row for row in result.study["results"]}
    assert {runner for strategy, runner in rows if strategy == "head"} >= {"engine", "v1_var_list", "quality"}
    assert {runner for strategy, runner in rows if strategy == LORA} == {"engine", "quality"}  # nothing to cache
    assert {runner for strategy, runner in rows if strategy == "head+wise_ft"} == {"quality"}
    for name in names:
        cost = rows[name, "quality"]["quality"]["cost"]
        assert cost["job_seconds"] > 0
        assert cost["peak_rss_bytes"] > 1 << 20
    assert rows[LORA, "engine"]["trained_parameters"] == rows[LORA, "quality"]["trained_parameters"]
    why = {(row["strategy"], row["runner"]): row["reason"] for row in result.study["left_out"]}
    assert why[LORA, "v1_var_list"] == "it has no adapters"
    assert "averages weights after training" in why["head+wise_ft", "engine"]
