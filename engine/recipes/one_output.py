"""A trained model with several outputs, used for one of them; and what refuses one that has several, or takes anything else."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from engine.errors import InputError
from engine.recipes.encoders import find_kind
from engine.text import join_words, nearest
from engine.training.losses import accepted_keywords


class OneOutput(tf.Module):
    """A network that returns tensors by name, as one that returns a single one of them."""

    def __init__(self, network: Any, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output
        self._taken = accepted_keywords(network)

    def __call__(self, inputs: Any, *, training: bool = False, seeds: Any = None) -> Any:
        given = {"training": training, "seeds": seeds}
        return self.network(inputs, **{name: given[name] for name in self._taken})[self.output]


def view_output(opened: Any, task: str) -> Any:
    """An ``OpenedRun`` whose model has one of the outputs alone, as if it had been trained for this task.

    Its ``variables`` are those of the whole model. Raises InputError if there is no such output.
    """
    known = {each.name: each for each in opened.data.tasks}
    if task not in known:
        has = f"it has {join_words(known)}" if known else "it has one, without a name"
        raise InputError(f"task={task!r}: the model has no such output; {has}{nearest(task, list(known))}")
    facts, weights = known[task], opened.data.class_weights.get(task)
    data = dataclasses.replace(
        opened.data,
        outputs=facts.outputs,
        class_names=facts.class_names,
        columns=facts.columns,
        kind=facts.kind,
        tasks=(),
        class_weights={} if weights is None else {"": weights},
    )
    network = OneOutput(opened.model.network, task)
    model = dataclasses.replace(opened.model, network=network, outputs=facts.outputs, tasks={})
    return dataclasses.replace(opened, model=model, data=data)


def check_single(opened: Any, what: str) -> None:
    """Raises InputError if an ``OpenedRun`` has several outputs, which ``what`` does not take."""
    if opened.data.tasks:
        raise InputError(
            f"run={opened.path}: its model has several outputs ({join_words(opened.tasks)}), but {what} is for models with one; "
            "open_run(RUN).for_task(NAME) is the model with one of them, and `frostline predict` tells all"
        )


_TAKES = {
    "images": ("images", "--images=FOLDER"),
    "texts": ("texts", "--texts=FILE (.txt, .tsv, .csv, .jsonl or a folder of .txt files)"),
    "table": ("vectors of numbers", "--table=FILE (.csv, .tsv or .npz)"),
}


def check_given(opened: Any, flag: str) -> None:
    """Raises InputError unless an ``OpenedRun`` predicts from what a flag of predict gives: images, texts or table."""
    kind = find_kind(opened.config, opened.data)
    about = f"{'model' if opened.path is None else 'run'}={opened.path or opened.config.model}"
    if kind is None and len(opened.data.inputs) < 2:
        inputs = {name: list(shape) for name, (shape, _) in opened.data.inputs.items()} or list(opened.image_shape)
        raise InputError(
            f"{about}: it takes examples of {inputs}, which are neither images nor texts nor vectors of numbers, and predict has no "
            "file for them; evaluate takes such data, by --data=..."
        )
    if kind is None:
        check_images(opened, "predict")
    if kind != flag:
        taken, right = _TAKES[str(kind)]
        raise InputError(f"{about}: its model takes {taken}, and --{flag} gives it {_TAKES[flag][0]}; use {right}")


def check_images(opened: Any, what: str) -> None:
    """Raises InputError if an ``OpenedRun`` does not take one image, which ``what`` gives it."""
    about = f"{'model' if opened.path is None else 'run'}={opened.path or opened.config.model}"
    if len(opened.data.inputs) > 1 and find_kind(opened.config, opened.data) != "texts":
        names = join_words(opened.data.inputs)
        raise InputError(
            f"{about}: it takes several inputs for an example ({names}), and {what} gives it one image alone, since files do not "
            "say which belong together; evaluate takes such data, by --data=..., and in Python open_run(RUN).network takes a "
            "batch of each by its name"
        )
    if len(opened.image_shape) != 3:
        inputs = {name: list(shape) for name, (shape, _) in opened.data.inputs.items()} or list(opened.image_shape)
        raise InputError(
            f"{about}: it does not take an image but examples of {inputs}, and {what} is for images; evaluate takes such data, by "
            "--data=..."
        )
