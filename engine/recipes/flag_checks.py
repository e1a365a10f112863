"""Flags of finetune that contradict each other, found without TensorFlow."""

from __future__ import annotations

from typing import Any

from engine.data import augment
from engine.data.source import check_image_options
from engine.distribution import start
from engine.errors import InputError

GRAPH_OPTIONS = ("tags", "inputs", "outputs", "features", "graph_inputs", "constants")  # about --model=graph:PATH


def check_contradictions(config: Any) -> None:
    """Raises InputError if fields of a ``FinetuneConfig`` contradict each other."""
    of_graph = config.model.startswith(("graph:", "savedmodel:", "hub:"))
    if not of_graph:
        for name in GRAPH_OPTIONS:
            if getattr(config, name) is not None:
                raise InputError(
                    f"{name}={getattr(config, name)}: it is about a graph, and --model={config.model} is not graph:PATH"
                )
    if config.features is not None and config.outputs is not None:
        raise InputError(
            f"features={config.features}, outputs={config.outputs}: a new head replaces the old outputs; give one"
        )
    if config.micro_batches is not None and not 1 <= config.micro_batches <= config.batch_size:
        raise InputError(
            f"micro_batches={config.micro_batches}: a step of --batch_size={config.batch_size} examples can be computed "
            f"in 1 to {config.batch_size} parts"
        )
    base, *deltas = config.weights.split("+")
    if config.rules is not None and base in ("auto", "none"):
        raise InputError(
            f"rules={config.rules}: rules say how a file is read, but --weights={base} does not name a file"
        )
    if config.force_base and not deltas:
        raise InputError(f"force_base: --weights={config.weights} has no delta; it is used with BASE+DELTA")
    if config.adapt is not None and of_graph:
        raise InputError(
            f"adapt={config.adapt!r}: --model={config.model} is a graph of operations, which has no layers to adapt; leave out "
            "--adapt, or rebuild the network (docs/porting.md)"
        )
    if config.plan == "depth":
        if config.adapt is not None:
            raise InputError(
                f"adapt={config.adapt!r}: --plan=depth decides how many blocks train, and adapters decide it otherwise; "
                "give --plan=micro_batches"
            )
        if config.memory_budget is None:
            raise InputError("plan=depth: --memory_budget must say what has to fit")
        if config.train is not None or config.phase:
            raise InputError("plan=depth: the plan decides what trains; leave out --train and --phase")
    elif config.memory_budget is not None and config.micro_batches is not None:
        raise InputError(
            f"micro_batches={config.micro_batches}, memory_budget={config.memory_budget}: the budget decides the "
            "micro-batches; give only one of them"
        )
    if config.steps is not None and config.epochs is not None:
        raise InputError(f"steps={config.steps}, epochs={config.epochs}: give only one of them")
    if config.resume and config.out is None:
        raise InputError("resume: --out=FOLDER must say which run to resume")


def check_distribution(config: Any) -> None:
    """Raises InputError if the flags about replicas and workers of a ``FinetuneConfig`` contradict each other."""
    if config.logical_devices is not None and config.distribute != "mirrored":
        raise InputError(
            f"logical_devices={config.logical_devices}: they are the replicas of --distribute=mirrored; this run has "
            f"--distribute={config.distribute}"
        )
    if config.logical_devices is not None and config.device.startswith("gpu"):
        raise InputError(
            f"logical_devices={config.logical_devices}: the processor is divided into them, but --device={config.device} "
            "is a GPU; give --device=cpu, or leave out --logical_devices"
        )
    if config.worker_timeout != start.TIMEOUT and config.distribute != "multiworker":
        raise InputError(
            f"worker_timeout={config.worker_timeout:g}: it is about the workers of --distribute=multiworker; this run has "
            f"--distribute={config.distribute}"
        )
    if config.distribute == "none" and config.sync_batch_norm:
        raise InputError(
            "sync_batch_norm: it is about several replicas, but --distribute=none has one; give "
            "--distribute=mirrored or multiworker, or leave it out"
        )
    for name in ("micro_batches", "memory_budget"):
        if config.sync_batch_norm and (value := getattr(config, name)) not in (None, 1):
            raise InputError(
                f"sync_batch_norm, {name}={value}: BatchNorm would normalise a whole step at once, which micro-batches "
                "divide; give only one of them"
            )
    if config.distribute != "none" and config.model.startswith(("graph:", "savedmodel:", "hub:")):
        kind = "a graph of TensorFlow 1" if config.model.startswith("graph:") else "a SavedModel"
        raise InputError(
            f"distribute={config.distribute}: --model={config.model} is {kind}, which trains on one "
            "device; give --distribute=none"
        )


def check_auto_freeze(config: Any) -> None:
    """Raises InputError if ``auto_freeze`` contradicts another field of a ``FinetuneConfig``."""
    if config.auto_freeze is None:
        return
    about = f"auto_freeze={config.auto_freeze!r}"
    if config.phase:
        raise InputError(f"{about}: it decides the phases itself; leave out --phase, and say by --train what begins")
    if config.plan == "depth":
        raise InputError(f"{about}: --plan=depth decides what trains too; give only one of them")
    if config.cache == "require":
        raise InputError(
            f"{about}: the first phase trains from images, so it cannot have a cache; give --cache=auto, which caches "
            "the later phases where that pays"
        )


def check_images(config: Any) -> None:
    """Raises InputError if something is asked of images that changes nothing, or that would change their mask."""
    check_image_options(config.data, config.image_options(), resized=config.image_size is not None)
    moved = sorted({"color", "contrast"} & set(augment.parse(config.augment))) if config.image_mask else []
    if moved:
        raise InputError(
            f"augment={config.augment}, image_mask: {moved[0]} would change the mask, which is a channel of the image; leave out "
            "one of them"
        )
