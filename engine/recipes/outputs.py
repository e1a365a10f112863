"""What each output of a network is trained on, and what it means: decided from the data and the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data.class_names import read_task_class_names, same_names
from engine.data.class_pixels import count_pixels
from engine.data.part import DataError, Part, Source, check_labels
from engine.data.tasks import has_label, view_task
from engine.files import PathLike
from engine.models.spec import name_heads
from engine.outside_names import PREFIX
from engine.porting import PortError
from engine.porting.deltas.chain import WORDS, parse_chain
from engine.text import join_words
from engine.training.class_weights import balance_classes, balance_counts, describe_weights, read_class_weights
from engine.training.loss_names import BALANCED, CENTERS, OF_PIXELS, LossError, OutputsOf, TaskLoss, output_kind

_PARTS = ("train", "eval", "test")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of a network.

    Attributes:
        loss: its loss, with the name of its task; "" for the only output.
        kind: what it means, "softmax", "sigmoid" or "mse".
        count: how many numbers it has for an example.
        classes: the names of its classes, which may be numbers; empty if it has none.
        class_names: the data's own names of classes or labels, in the order of the output; None if they name none.
        columns: the names of its columns, for "mse"; None if there are none.
        class_weights: the weights of its classes in the loss; None if all are 1.
    """

    loss: TaskLoss
    kind: str
    count: int
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    class_weights: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return self.loss.name


def fit_source(source: Source, losses: Sequence[TaskLoss]) -> Source:
    """The data as the losses need them: one-hot labels of the only output become classes.

    Raises LossError unless the losses are named where the data have tasks, and not where they have one label.
    """
    names = [each.name for each in losses]
    if names == [""]:
        _check_dense(source, losses[0])
        if source.tasks:
            tasks = [target.name for target in source.tasks]
            example = ", ".join(f"{target.name}={'softmax' if target.classes else 'mse'}" for target in source.tasks)
            raise LossError(
                f"loss={losses[0].kind}: {source.name} has labels of {join_words(tasks)}; name the loss of each, as in "
                f"--loss='{example}'"
            )
        return source.with_classes() if losses[0].kind in ("softmax", "focal") else source
    if not source.tasks:
        raise LossError(
            f"loss: it names {join_words(names)}, but {source.name} has one label for each example, without a name; give "
            f"--loss={losses[0].kind}"
        )
    return source


def _check_dense(source: Source, loss: TaskLoss) -> None:
    """Raises LossError if a loss of pixels meets labels of examples, or the other way round."""
    if source.train.dense and loss.kind not in ("softmax", *OF_PIXELS) and not loss.kind.startswith(PREFIX):
        raise LossError(
            f"loss={loss.kind}: {source.name} has masks, a class for each pixel; expected softmax, {', '.join(OF_PIXELS)} or "
            f"{PREFIX}module:name"
        )
    if loss.kind in OF_PIXELS and not source.train.dense:
        raise LossError(f"loss={loss.kind}: it is for masks, a class for each pixel, which {source.name} has not")


def plan_outputs(
    source: Source, losses: Sequence[TaskLoss], *, say: Callable[[str], None] = lambda line: None
) -> tuple[Output, ...]:
    """The outputs that a network needs for these data and losses.

    ``say`` is called with a line on the weights of classes, and on labels that are missing or not used.

    Raises:
        DataError: labels do not suit a loss, or a task has none at all.
        InputError: the weights of classes cannot be found.
    """
    found = []
    for loss in losses:
        view = view_task(source, loss.name) if loss.name else source
        kind = output_kind(loss, classes=bool(view.classes))
        count = view.outputs(kind)
        if loss.kind == "mse":
            _check_amounts(view)
        if loss.name:
            _check_labels(source, view, loss.name, say)
        numbers = kind == "mse"
        found.append(
            Output(
                loss=loss,
                kind=kind,
                count=count,
                classes=view.classes,
                class_names=None if numbers else view.class_names,
                columns=(view.columns or None) if numbers else None,
                class_weights=_find_class_weights(view, loss, kind, say),
            )
        )
    named = [loss.name for loss in losses]
    if unused := [target.name for target in source.tasks if target.name not in named]:
        say(f"data:    no loss names {join_words(unused)}, so these labels are not used")
    return tuple(found)


def _check_amounts(source: Source) -> None:
    """Raises DataError if labels are classes with names, whose numbers are not amounts."""
    if source.classes and source.named:
        raise DataError(
            f"data={source.name}: the loss mse needs numbers, but the labels are the classes {join_words(source.classes)}; expected "
            "softmax, or labels that are read as numbers (label=COLUMN:number; of texts target=COLUMN)"
        )


def describe_outputs(source: Source, outputs: Sequence[Output]) -> dict[str, Any]:
    """The arguments of ``engine.build_model`` that say which outputs a network needs."""
    logits = frozenset(output.name for output in outputs if output.kind != "mse")
    if outputs[0].name:
        tasks = {output.name: output.count for output in outputs}
        return {"outputs": sum(tasks.values()), "tasks": tasks, "logits": logits}
    return {"outputs": outputs[0].count, "logits": bool(logits), "outputs_of": find_outputs_of(source, outputs)}


def find_outputs_of(source: Source, outputs: Sequence[Output]) -> OutputsOf | None:
    """What has outputs of its own (``engine.build_model``): only a loss of the user's own may take any."""
    if source.train.dense:
        return "pixel"
    if outputs[0].kind == CENTERS:
        return "place"
    return None if outputs[0].loss.kind.startswith(PREFIX) else "example"


def list_class_weights(outputs: Sequence[Output]) -> dict[str, tuple[float, ...]]:
    """The weights of classes by output, of those that have some."""
    return {output.name: output.class_weights for output in outputs if output.class_weights is not None}


def check_task_classes(weights: PathLike, outputs: Sequence[Output]) -> None:
    """Raises PortError if a file of weights has a head of the same size for other classes of a task, or in another order."""
    chain = parse_chain(weights)
    given: dict[str, tuple[PathLike, tuple[str, ...]]] = {}
    for file in (*(() if chain.base in WORDS else (chain.base,)), *chain.deltas):  # the last one wins
        given |= {task: (file, names) for task, names in read_task_class_names(file).items()}
    for output in outputs:
        file, names = given.get(output.name, ("", ()))
        wanted = output.class_names or ()
        if names and wanted and len(names) == len(wanted) and not same_names(names, wanted):
            raise PortError(
                f"{file}: its output {output.name!r} is for {join_words(names)}, in this order, and the data have "
                f"{join_words(wanted)}. Heads of several tasks are not matched by the names of their classes; a rule file with "
                f"the line `fresh head/{name_heads([output.name])[output.name]}/.*` (--rules) starts this one anew"
            )


def _check_labels(source: Source, view: Source, task: str, say: Callable[[str], None]) -> None:
    """Raises DataError if no training example has a label of a task, or one that counts is not a number."""
    for name in _PARTS:
        part: Part | None = getattr(view, name)
        if part is None:
            continue
        present = has_label(part)
        if not present.any() and name == "train":
            raise DataError(f"data={source.name}: no training example has a label of {task!r}, so nothing can learn it")
        if not present.any():
            say(f"data:    no example of the {name} part has a label of {task!r}, so its figures there are missing")
        elif not present.all():
            say(f"data:    {name}: {int(present.sum()):,} of {len(part):,} examples have a label of {task!r}")
        if part.labels.dtype.kind == "f":
            finite = np.isfinite(part.labels).reshape(len(part), -1).all(axis=1)
            if len(wrong := np.flatnonzero(present & ~finite)):
                raise DataError(
                    f"data={source.name}: {name}: {len(wrong)} labels of {task!r} are not finite, such as that of example "
                    f"{wrong[0]}; a missing label has the weight 0 in the column weight/{task}"
                )


def _find_class_weights(
    view: Source, loss: TaskLoss, kind: str, say: Callable[[str], None]
) -> tuple[float, ...] | None:
    """The weights of the classes of an output, from a file or from the training part; None if it has none."""
    given = loss.class_weights
    if given is None:
        return None
    where = f" of {loss.name}" if loss.name else ""
    classes = view.classes
    if kind == "sigmoid" and view.train.labels.ndim == 2 and view.train.labels.shape[1] > 1:
        raise LossError(
            f"class_weights={given}: the labels{where} are {view.train.labels.shape[1]} columns of 0 and 1, of which an "
            "example may have several; weights of classes are for one class for each example"
        )
    if not classes and kind == "sigmoid":
        classes = ("0", "1")
    if not classes:
        raise LossError(f"class_weights={given}: the labels{where} are numbers, not classes")
    if given == BALANCED and view.train.dense:
        weights = balance_counts(count_pixels(view.train.labels)[: len(classes)], classes)
    elif given == BALANCED:
        labels = view.train.labels.reshape(len(view.train))
        check_labels(view.name, "train_labels", labels, len(classes))
        weights = balance_classes(labels[has_label(view.train)], classes)
    else:
        weights = read_class_weights(given, classes)
    say(f"weights of classes{where}: {describe_weights(weights, classes)}")
    return weights
