"""StudyConfig: one field for each flag, all checks in one place, and no TensorFlow."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from engine.errors import InputError
from engine.study.config import StudyConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_fields_and_defaults_are_those_of_the_flags_and_tensorflow_is_not_needed() -> None:
    code = """
import sys
from absl import flags
import scripts.benchmark_freezing, scripts.cli
from scripts import benchmark_freezing_flags as own
from engine.study.config import StudyConfig
import dataclasses
flags.FLAGS(["benchmark_freezing"])
assert own.read_config() == StudyConfig(), own.read_config()
defined = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[own.__name__]}
assert defined == {field.name for field in dataclasses.fields(StudyConfig)}, defined
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 0}, "repeats=0: expected a number from 1 to 1000"),
        ({"batch_size": 8, "micro_batches": 9}, "micro_batches=9: expected a number from 1 to 8"),
        ({"seed": -1}, "seed=-1"),
        ({"train_examples": -1}, "train_examples=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"epochs": float("inf")}, "epochs=inf"),
        ({"target_accuracy": 0.0}, "target_accuracy=0.0: expected a number above 0 and at most 1"),
        ({"target_accuracy": 1.1}, "target_accuracy=1.1"),
        ({"steps": 3, "epochs": 1.0}, "steps=3, epochs=1.0: both set the length of a run; give one of them"),
        ({"runners": ["engine", "engine"]}, "runners='engine,engine': engine appears twice"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value_and_the_rule(fields: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        StudyConfig(**fields)
    assert message in str(raised.value)


def test_a_config_is_a_value() -> None:
    one = StudyConfig(strategies=["head", "full"], runners="engine")
    assert (one.strategies, one.runners) == (("head", "full"), ("engine",))
    assert hash(one) == hash(dataclasses.replace(one))
    assert one != dataclasses.replace(one, seed=1)
    assert (
        one.repeat_count,
        StudyConfig(quick=True).repeat_count,
        StudyConfig(quick=True, repeats=2).repeat_count,
    ) == (3, 1, 2)
    assert one.describe_call() == "run_study(StudyConfig(strategies=('head', 'full'), runners=('engine',)))"
