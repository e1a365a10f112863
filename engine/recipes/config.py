"""What a fine-tuning run is asked to do: one field for each flag of ``finetune``, checked without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine import sizes
from engine.data import augment, image_options, layout, resize, source
from engine.data.image_options import ImageOptions
from engine.devices import parse_device
from engine.distribution import start
from engine.errors import InputError, check_range
from engine.feature_cache import options as cache_options
from engine.feature_cache.options import CacheOptions
from engine.files import PathLike
from engine.models.adapters.language import parse_adapters
from engine.models.spec import check_family
from engine.outside_names import is_outside
from engine.recipes.flag_checks import (
    GRAPH_OPTIONS,
    check_auto_freeze,
    check_contradictions,
    check_distribution,
    check_images,
)
from engine.selection import filters
from engine.selection.filters import FilterError
from engine.text import nearest
from engine.training import (
    compiling,
    loss_names,
    metric_names,
    optimizers,
    outside_rules,
    phases,
    precision,
    remat,
    schedules,
)
from engine.training.auto_freeze import parse_auto_freeze
from engine.training.loss_names import TaskLoss
from engine.training.optimizers import Optimizer
from engine.training.phases import Phase
from engine.training.rates import parse_rates, read_rates

# Fields that are one of a few words; None is valid where it is the default.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "slots": ("continue", "fresh"),
    "bad_images": source.BAD_IMAGES,
    "parts": layout.FOLDER_PARTS,
    **image_options.CHOICES,
    "decay_toward": ("zero", "start"),
    "nonfinite": ("skip", "stop"),
    "remat": remat.MODES,
    "plan": ("micro_batches", "depth"),
    "cache": cache_options.MODES,
    "jit_compile": compiling.CHOICES,
    "distribute": start.KINDS,
}
# A resume may change these; all other fields decide the course of a run.
FREE = {
    *("out", "resume", "metrics", "log_every", "checkpoint_every", "keep", "keep_best", "histograms"),
    *("image_cache", "cache_budget", "cache_dir", "force_base"),
    *("device", "jit_compile"),  # the last bits may then differ, which the resume says
    *("distribute", "logical_devices", "worker_timeout", "sync_batch_norm"),
}
_TOLD = ("softmax", "sigmoid", "mse")  # losses that say what outputs mean, whatever the data are
_TYPES = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "tuple[str, ...]": (tuple,)}
_HYPERPARAMETERS = (
    *("momentum", "nesterov", "beta1", "beta2", "epsilon"),
    *("weight_decay", "decay_toward", "layer_decay", "clip_norm"),
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides a fine-tuning run; give it to ``finetune``.

    Each field is a flag of ``frostline finetune``, with the same name and default; ``frostline finetune --help``
    explains them all. None leaves a choice to the run. Creating a config checks whatever can be checked without
    TensorFlow and without reading files: ranges, names, contradictions, and the syntax of filters and phases.

    Raises:
        InputError: a field is not valid, or contradicts another.

    Example:
        >>> from engine import FinetuneConfig
        >>> FinetuneConfig(train="head/.* @blocks[-2:]", steps=100).optimizer
        'adamw'
        >>> FinetuneConfig(steps=0)
        Traceback (most recent call last):
        engine.errors.InputError: steps=0: expected a number of at least 1
    """

    model: str = "vit:mini"
    tags: str | None = None
    inputs: str | None = None
    outputs: str | None = None
    features: str | None = None
    graph_inputs: str | None = None
    constants: str | None = None
    head: str | None = None
    weights: str = "auto"
    slots: Literal["continue", "fresh"] = "continue"
    rules: str | None = None
    adapt: str | None = None
    force_base: bool = False
    data: str = "fashion_mnist_mini"
    image_size: str | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    image_cache: str = "1GiB"
    parts: Literal["auto", "off"] = "auto"
    image_pixels: Literal["rgb", "stored"] = "rgb"
    image_fit: Literal["cover", "pad"] = "cover"
    image_mask: bool = False
    nan: Literal["stop", "zero"] = "stop"
    masks: str | None = None
    max_tokens: int | None = None
    eval_fraction: float | None = None
    train_examples: int | None = None
    augment: str = ""
    loss: str = "softmax"
    label_smoothing: float = 0.0
    class_weights: str | None = None
    sample_weights: str | None = None
    train: str | None = None
    auto_freeze: str | None = None
    phase: tuple[str, ...] = ()
    steps: int | None = None
    epochs: float | None = None
    early_stop: int | None = None
    metrics: str = ""
    monitor: str = "eval_loss"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    rates: str | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    decay: str | None = None
    decays: str | None = None
    decay_toward: Literal["zero", "start"] | None = None
    layer_decay: float | None = None
    clip_norm: float | None = None
    batch_size: int = 64
    ema: float | None = None
    precision: str = "float32"
    jit_compile: compiling.JitCompile = "auto"
    device: str = "auto"
    distribute: Literal["none", "mirrored", "multiworker"] = "none"
    logical_devices: int | None = None
    worker_timeout: float = start.TIMEOUT
    sync_batch_norm: bool = False
    nonfinite: Literal["skip", "stop"] | None = None
    micro_batches: int | None = None
    remat: remat.Mode | None = None
    memory_budget: str | None = None
    plan: Literal["micro_batches", "depth"] = "micro_batches"
    dry_run: bool = False
    cache: cache_options.Mode = "auto"
    cache_dtype: str | None = None
    cache_budget: str = "20GiB"
    cache_views: int | None = None
    cache_dir: str | None = None
    out: str | None = None
    resume: bool = False
    eval_every: int | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    keep: int = 2
    keep_best: bool = False
    histograms: bool = False
    seed: int = 0
    deterministic: bool = True

    def __post_init__(self) -> None:
        self._check_types()
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known and value is not type(self).__dataclass_fields__[name].default:
                raise InputError(
                    f"{name}={value!r}: expected {', '.join(known[:-1])} or {known[-1]}{nearest(str(value), known)}"
                )
        self._check_ranges()
        self._check_names()
        check_contradictions(self)
        check_auto_freeze(self)
        check_distribution(self)
        if is_outside(self.optimizer):  # what it has is known when it is imported, which needs TensorFlow
            outside_rules.check_optimizer_name(self.optimizer)
        else:
            self.make_optimizer()
        self.phases()
        self.cache_options("")

    def _check_types(self) -> None:
        """Paths become texts and lists tuples; anything else must be of the field's type."""
        for field in dataclasses.fields(self):
            if field.name in CHOICES:
                continue
            value, (kind, *optional) = getattr(self, field.name), str(field.type).split(" | ")
            if kind == "str" and isinstance(value, os.PathLike):
                value = os.fspath(value)
            elif field.name == "phase" and isinstance(value, list):
                value = tuple(value)
            right = isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
            if not right and not (optional and value is None):
                expected = "a sequence of texts" if field.name == "phase" else kind
                raise InputError(f"{field.name}={value!r}: expected {expected}{' or None' if optional else ''}")
            object.__setattr__(self, field.name, value)

    def _check_ranges(self) -> None:
        counts = ("steps", "early_stop", "eval_every", "log_every", "checkpoint_every", "keep", "batch_size")
        for name in (*counts, "train_examples", "max_tokens", "cache_views"):
            check_range(name, getattr(self, name), 1)
        check_range("logical_devices", self.logical_devices, 1, start.MOST_LOGICAL_DEVICES)
        check_range("worker_timeout", self.worker_timeout, start.LEAST_TIMEOUT)
        for name in ("epochs", "learning_rate"):
            check_range(name, getattr(self, name), above=0)
        for name in ("eval_fraction", "ema"):
            check_range(name, getattr(self, name), above=0, below=1)
        check_range("seed", self.seed, 0, 2**31 - 1)

    def _check_names(self) -> None:
        check_family(self.model)
        given: dict[str, Any] = {"parts": self.parts, "images": self.image_options(), "masks": self.masks}
        source.check_source(self.data, bad_images=self.bad_images, **given)
        check_images(self)
        if self.image_size is not None:
            resize.parse_image_size(self.image_size)
        augment.parse(self.augment)
        if self.adapt is not None:
            parse_adapters(self.adapt)
        self.losses()
        self._check_metrics()
        schedules.parse(self.schedule)
        if self.auto_freeze is not None:
            parse_auto_freeze(self.auto_freeze)
        if self.rates is not None:
            trains = {f"train={{}} in phase {phase.name}": phase.train for phase in self.phases() if self.phase}
            read_rates(self.rates, trains=trains or {"--train={}": self.train or "@all"})
        if self.precision != precision.AUTO:
            precision.parse(self.precision, auto=True)
        parse_device(self.device)
        for name in ("image_cache", "cache_budget", "memory_budget"):
            if (size := getattr(self, name)) is not None:
                sizes.parse_bytes(size, name=name)

    def _check_metrics(self) -> None:
        asked = metric_names.parse_metrics(self.metrics)
        if asked and self.loss.startswith(loss_names.OF_GRAPH):
            raise InputError(f"metrics={self.metrics}: --loss={self.loss} is computed by the graph, and says no more")
        told = {each.name: each.kind if each.kind in _TOLD else None for each in self.losses()}
        metric_names.check_fits(asked, told)
        loss_names.check_accuracy(self.monitor, self.losses())
        if self.monitor not in loss_names.list_figures(self.losses()):
            metric_names.check_monitor(self.monitor, asked)

    def image_options(self) -> ImageOptions:
        """How images become arrays; raises InputError for a mask that would mark nothing."""
        asked = ("image_pixels", "image_fit", "image_mask", "nan")
        return ImageOptions(**{name: getattr(self, name) for name in asked})

    def graph_options(self) -> dict[str, str]:
        """What is asked of a model ``graph:PATH``, as ``engine.build_model`` takes it."""
        found = {name: value for name in GRAPH_OPTIONS if (value := getattr(self, name)) is not None}
        if self.loss.startswith(loss_names.OF_GRAPH):
            found["loss"] = self.loss.removeprefix(loss_names.OF_GRAPH)
        return found

    def make_optimizer(self) -> Optimizer:
        """The optimizer of phases that do not say otherwise; raises OptimizerError or FilterError."""
        given = {name: value for name in _HYPERPARAMETERS if (value := getattr(self, name)) is not None}
        if self.decay is not None:
            with _naming("decay", self.decay):
                given["decay"] = filters.parse_filter(self.decay)
        if self.decays is not None:
            given["decays"] = parse_rates(self.decays, name="decays")
        return optimizers.build_optimizer(self.optimizer, **given)

    def phases(self) -> list[Phase]:
        """The phases of ``phase``, or ``train`` as the only phase; none where the default phases are meant.

        With ``adapt``, adapters and the head train where nothing else is said; with ``auto_freeze``, everything.

        Raises InputError if one cannot be read, if a field would go unused, or if two phases have one name.
        """
        length: dict[str, Any] = {"steps": self.steps, "epochs": self.epochs if self.steps or self.epochs else 8.0}
        train = self.train
        if train is None and (self.adapt is not None or self.auto_freeze is not None):
            train = "@all" if self.adapt is None else "@adapters @head"
        if train is not None and not self.phase:
            with _naming("train", train):
                return [Phase(name="train", train=train, **length)]
        found = []
        for text in self.phase:
            with _naming("phase", text):
                found.append(phases.parse(text, train=train, **length))
        if self.phase and self.train is not None and all("train=" in text for text in self.phase):
            raise InputError(f"train={self.train!r}: it is not used, because each --phase has its own train=")
        lengths = [any(f"{key}=" in text for key in ("steps", "epochs", "until")) for text in self.phase]
        for name in ("rates", "decays"):
            if found and getattr(self, name) is not None and all(getattr(phase, name) is not None for phase in found):
                raise InputError(
                    f"{name}={getattr(self, name)!r}: it is not used, because each --phase has its own {name}="
                )
        for name in ("steps", "epochs"):
            if self.phase and getattr(self, name) is not None and all(lengths):
                raise InputError(
                    f"{name}={getattr(self, name)}: it is not used, because each --phase has its own length"
                )
        for phase in found:
            self.find_losses(phase)
        found = phases.expand_groups(found)
        if len({phase.name for phase in found}) < len(found):
            raise InputError("phase: two phases have the same name; tell them apart with name=")
        return found

    def losses(self) -> tuple[TaskLoss, ...]:
        """The loss of the only output, or of each of several; raises LossError."""
        return loss_names.parse_losses(
            self.loss, label_smoothing=self.label_smoothing, class_weights=self.class_weights
        )

    def find_losses(self, phase: Phase) -> tuple[str, ...] | None:
        """The outputs whose losses count in a phase; None if all do. Raises LossError if there is no such loss."""
        if phase.losses is None:
            return None
        about = f"phase {phase.name!r}: losses={phase.losses}"
        return loss_names.find_losses(self.losses(), phase.losses, about=about)

    def cache_options(self, root: PathLike) -> CacheOptions:
        """What is asked of the feature cache, in this folder; raises CacheError if it contradicts itself."""
        budget = sizes.parse_bytes(self.cache_budget, name="cache_budget")
        return CacheOptions(mode=self.cache, root=root, dtype=self.cache_dtype, views=self.cache_views, budget=budget)

    def to_json(self) -> dict[str, Any]:
        """All fields, as run.json keeps them."""
        return dataclasses.asdict(self) | {"phase": list(self.phase)}


@contextlib.contextmanager
def _naming(name: str, value: str) -> Iterator[None]:
    """Puts the field before the message of a filter that cannot be read."""
    try:
        yield
    except FilterError as error:
        raise FilterError(f"{name}={value!r}: {error}") from None
