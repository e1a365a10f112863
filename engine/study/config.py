"""The configuration of a study, checked as far as possible without data and model. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from engine.data import resize, source
from engine.errors import InputError, check_range
from engine.models.spec import check_family
from engine.study.quality.rates import AUTO, parse_learning_rates
from engine.study.quality.settings import CORRUPT, MODES, SEARCHES, parse_corrupt
from engine.text import nearest
from engine.training import loss_names, precision, schedules

_LIMITS = {
    "repeats": (1, 1000),
    "seeds": (1, 100),
    "early_stop": (1, 10_000_000),
    "batch_size": (1, 65536),
    "steps": (1, 10_000_000),
    "eval_every": (1, 10_000_000),
    "train_examples": (0, 2**31),
    "eval_examples": (0, 2**31),
    "seed": (0, 2**31 - 1),
}
_LOSSES = ("softmax", "sigmoid", "mse")  # those of all runners
_OF_QUALITY = ("learning_rates", "seeds", "search", "schedule", "early_stop", "corrupt")
_OF_COST = ("runners", "repeats", "learning_rate", "target_accuracy", "redo_disturbed", "histograms", "check_numerics")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: which freezing strategies are compared, by which runners, on which job.

    There is one field for each flag of ``benchmark_freezing``, with the same meaning and default; its ``--helpfull``
    explains each with its unit. None stands for a default that depends on the model, the data or ``quick``.

    Raises:
        InputError: a number is out of range, or fields contradict each other.

    Example:
        >>> StudyConfig(strategies=["head", "full"], steps=4).repeat_count
        3
        >>> StudyConfig(steps=4, epochs=1)
        Traceback (most recent call last):
        engine.errors.InputError: steps=4, epochs=1: both set the length of a run; give one of them
    """

    model: str = "vit:mini"
    head: str | None = None
    weights: str = "auto"
    data: str = "fashion_mnist_mini"
    image_size: str | tuple[int, int] | None = None
    train_examples: int | None = None
    eval_examples: int | None = None
    eval_fraction: float | None = None
    loss: str = "softmax"
    mode: str = "cost"
    strategies: Sequence[str] = ()
    train: str | None = None
    skip_unmatched: bool = False
    runners: Sequence[str] = ()
    repeats: int | None = None
    quick: bool = False
    precision: str = "float32"
    micro_batches: int = 1
    batch_size: int = 32
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 1e-3
    learning_rates: str = AUTO
    seeds: int = 1
    search: str = "grid"
    schedule: str = "cosine"
    early_stop: int | None = None
    corrupt: str = CORRUPT
    eval_every: int | None = None
    target_accuracy: float | None = None
    seed: int = 0
    out: str | None = None
    redo_disturbed: bool = False
    histograms: bool = False
    check_numerics: bool = False

    def __post_init__(self) -> None:
        for name in ("strategies", "runners"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name, (least, most) in _LIMITS.items():
            check_range(name, getattr(self, name), least, most)
        check_range("micro_batches", self.micro_batches, 1, self.batch_size)
        for name in ("learning_rate", "epochs"):
            check_range(name, getattr(self, name), above=0)
        check_range("target_accuracy", self.target_accuracy, above=0, most=1)
        check_range("eval_fraction", self.eval_fraction, above=0, below=1)
        check_family(self.model)
        source.check_source(self.data)
        if isinstance(self.image_size, str):
            resize.parse_image_size(self.image_size)
        if self.loss not in _LOSSES:
            raise loss_names.LossError(
                f"loss={self.loss!r}: expected {', '.join(_LOSSES[:-1])} or {_LOSSES[-1]}, which all runners have"
                f"{nearest(self.loss, list(_LOSSES))}"
            )
        precision.parse(self.precision)
        if self.steps is not None and self.epochs is not None:
            raise InputError(
                f"steps={self.steps}, epochs={self.epochs}: both set the length of a run; give one of them"
            )
        self._check_mode()
        for name in self.runners:
            if self.runners.count(name) > 1:
                raise InputError(f"runners={','.join(self.runners)!r}: {name} appears twice")

    def _check_mode(self) -> None:
        for name, known in (("mode", MODES), ("search", SEARCHES)):
            if (value := getattr(self, name)) not in known:
                listed = f"{', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"{name}={value!r}: expected {listed}{nearest(value, known)}")
        parse_learning_rates(self.learning_rates)
        parse_corrupt(self.corrupt)
        schedules.parse(self.schedule)
        unused = {"cost": _OF_QUALITY, "quality": _OF_COST, "both": ()}[self.mode]
        for field in dataclasses.fields(self):
            if field.name in unused and (value := getattr(self, field.name)) != field.default:
                other = "quality" if self.mode == "cost" else "cost"
                raise InputError(
                    f"{field.name}={value!r}: it is not used by --mode={self.mode}; give --mode={other} or --mode=both, or "
                    "leave it out"
                )
        if self.mode != "cost" and self.eval_examples:
            raise InputError(
                f"eval_examples={self.eval_examples}: --mode={self.mode} chooses by all evaluation examples, as finetune "
                "evaluates; leave it out"
            )

    @property
    def measures_cost(self) -> bool:
        return self.mode != "quality"

    @property
    def measures_quality(self) -> bool:
        return self.mode != "cost"

    @property
    def repeat_count(self) -> int:
        """How many times each strategy is run by each runner."""
        return self.repeats or (1 if self.quick else 3)

    def describe_call(self) -> str:
        """The Python expression that runs this study, with the fields that differ from their defaults."""
        given = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"run_study(StudyConfig({', '.join(given)}))"
