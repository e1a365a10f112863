"""Opens a run as the subject of an export: its model, and the real examples that the export is checked on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from engine.data.image_options import DEFAULT
from engine.errors import InputError
from engine.export.choose_inputs import check_inputs, choose_inputs
from engine.export.inputs import Images
from engine.export.outputs import Output, name_arguments
from engine.export.subject import Subject
from engine.files import PathLike
from engine.models.adapters.attach import attach_requested
from engine.recipes.evaluation_data import open_examples
from engine.recipes.merged import merge_run
from engine.recipes.reopen import OpenedRun, build_run_model, open_run
from engine.runs.saved_flags import choose_averages
from engine.selection.selection import select
from engine.selection.variables import ModelVariables, name_variables
from engine.training import precision as precisions
from engine.training.loss_names import CENTERS


def open_subject(
    run: PathLike,
    *,
    data: str | None = None,
    ema: bool | None = None,
    checkpoint: PathLike | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Subject:
    """Opens the model of a run, and its data; ``data`` says where they are now, if they have moved.

    Raises InputError if the run cannot be opened (engine.recipes.reopen), or data are missing or do not fit the model.
    """
    opened = open_run(run, averages=choose_averages(run, ema), checkpoint=checkpoint, say=say)
    check_inputs(opened)
    outputs = describe_outputs(opened)
    if any(output.loss == CENTERS for output in outputs):
        raise InputError(
            f"run={run}: it finds boxes, and its outputs are maps, which no export takes; predict writes the boxes, and "
            "engine.recipes.reopen.open_run gives the network"
        )
    say(f"weights: {opened.weights}")
    found = open_examples(opened, data=data, say=say)
    trained = _trained(opened)
    inputs = choose_inputs(opened, found)
    opened, merged = merge_run(opened, say=say)
    own = set(opened.variables.by_path())
    numbers = opened.numbers
    training = found.source.train  # which other data than the run's may lack
    training = training if len(training) and training.image_shape == opened.image_shape else found.part
    return Subject(
        model=opened.config.model,
        network=opened.network,
        variables=opened.variables,
        inputs=inputs,
        outputs=outputs,
        averaged=opened.averaged,
        trained=tuple(path for path in dict.fromkeys((*merged, *trained)) if path in own),
        single_precision=(numbers.variables, numbers.compute) == (tf.float32, tf.float32),
        rebuild=lambda: _rebuild(opened),
        examples=found.part,
        training=training,
        reads_files=isinstance(inputs, Images)
        and opened.config.image_options() == DEFAULT
        and opened.image_shape[-1] in (1, 3),
    )


def describe_outputs(opened: OpenedRun) -> tuple[Output, ...]:
    """What each output of a run's model means."""
    if not opened.tasks:
        names = opened.data.columns if opened.loss == "mse" else opened.class_names
        return (Output(loss=opened.loss, count=opened.data.outputs, class_names=names),)
    called = name_arguments(opened.tasks)
    return tuple(
        Output(
            task=task.name,
            prefix=f"{called[task.name]}_",
            loss=task.kind,
            count=task.outputs,
            class_names=task.columns if task.kind == "mse" else task.class_names,
        )
        for task in opened.data.tasks
    )


def _trained(opened: OpenedRun) -> list[str]:
    """The paths that the run trains, statistics that moved included, in model order; also if it has not finished."""
    if phases := opened.run.get("phases"):
        paths = {path for phase in phases for path in (*phase["trained"], *phase["moving"])}
    elif opened.config.plan == "depth":
        paths = {entry.path for entry in opened.variables}
    else:
        default = ("@head", f"{opened.model.upper} @head".strip())
        filters = [phase.train for phase in opened.config.phases()] or default
        chosen = [select(opened.variables, each, statistics=opened.model.statistics) for each in filters]
        paths = {entry.path for each in chosen for entry in (*each.trained, *each.moving)}
    return [entry.path for entry in opened.variables if entry.path in paths]


def _rebuild(opened: OpenedRun) -> tuple[Any, ModelVariables]:
    built = build_run_model(opened.config, opened.data, precisions.parse("float32"))
    attach_requested(built)
    return built.network, name_variables(built.network)
