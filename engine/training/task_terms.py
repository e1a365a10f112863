"""The terms of a supervised loss: one for each output of a network, from its labels and weights in a batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from engine.data.batch_names import WEIGHT, label_name, weight_name
from engine.errors import InputError
from engine.outside_names import PREFIX, describe_error, import_function
from engine.text import join_words
from engine.training import loss_kinds
from engine.training.loss_kinds import Values
from engine.training.loss_names import LOSSES, OF_GRAPH, OPTIONS, LossError, TaskLoss

Pairs = Mapping[str, tuple[Any, Any]]


class TaskTerms:
    """Computes the terms and metrics of outputs: a tensor for one loss without a name, else tensors by the names of losses.

    The term of the task ``age`` is called ``age``, and its metrics ``NAME/age``. Its labels are "label/age" in a batch, and
    the weights of examples "weight/age", times "weight" where a batch has both.

    Args:
        losses: the loss of each output.
        class_weights: the weights of classes, by the name of a loss.

    Raises:
        LossError: a loss of the user's own cannot be imported, or does not take its options.
    """

    def __init__(self, losses: Sequence[TaskLoss], class_weights: Mapping[str, Sequence[float]] | None = None) -> None:
        self.losses = tuple(losses)
        if unknown := [name for name in class_weights or {} if name not in [each.name for each in losses]]:
            raise LossError(f"class_weights: there is no loss of the output {unknown[0]!r}")
        self._computes = {each.name: find_compute(each, (class_weights or {}).get(each.name)) for each in losses}

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> tuple[Pairs, Pairs]:
        """The terms and the metrics of a batch; LossError if outputs and losses have other names."""
        found, metrics = {}, {}
        for each in self.losses:
            output = outputs
            if each.name:
                check_names(outputs, self.losses)
                output = outputs[each.name]
            elif isinstance(output, (Mapping, list, tuple)):
                raise LossError(_no_names(outputs, each))
            values = self._computes[each.name](output, _labels(each, batch), find_weights(each.name, batch))
            factored = values.values if each.weight == 1.0 else values.values * each.weight
            found[each.term] = (factored, values.weights)
            for name, pair in values.metrics.items():
                metrics[f"{name}/{each.name}" if each.name else name] = pair
        return found, metrics


def check_names(outputs: Any, losses: Sequence[TaskLoss]) -> None:
    """Raises LossError unless there is an output for each loss, and a loss for each output."""
    wanted = [each.name for each in losses]
    if not isinstance(outputs, Mapping):
        raise LossError(
            f"loss: the network returns {_describe(outputs)}; expected tensors by name, a dict of {join_words(wanted)}"
        )
    names = [str(name) for name in outputs]
    if missing := [name for name in wanted if name not in names]:
        raise LossError(f"loss: the network has no output {join_words(missing)}; it has {join_words(names)}")
    if unused := [name for name in names if name not in wanted]:
        example = ", ".join(f"{name}=softmax" for name in unused)
        raise LossError(
            f"loss: no loss names the output {join_words(unused)}; add one, as in '..., {example}', or build the network "
            "without it"
        )


def find_compute(loss: TaskLoss, class_weights: Sequence[float] | None = None) -> Callable[[Any, Any, Any], Values]:
    """What computes a loss from outputs, labels and weights. Raises LossError as ``TaskTerms`` does."""
    options: dict[str, Any] = dict(loss.options)
    if loss.class_weights is not None:
        del options["class_weights"]
    if loss.kind.startswith(OF_GRAPH):
        raise LossError(f"loss={loss.kind}: it is a loss of the graph's own; expected one of {', '.join(LOSSES)}")
    if class_weights is not None:
        if "class_weights" not in OPTIONS.get(loss.kind, {}):
            raise LossError(f"class_weights: the loss {loss.kind} has no such option")
        options["class_weights"] = tuple(class_weights)
    elif loss.class_weights is not None:
        raise LossError(f"class_weights={loss.class_weights}: expected their values; Task.open finds them in the data")
    if not loss.kind.startswith(PREFIX):
        return functools.partial(loss_kinds.KINDS[loss.kind], **options)
    try:
        function = import_function("loss", loss.kind, what="loss")
    except InputError as error:
        raise LossError(str(error)) from None
    try:
        inspect.signature(function).bind(None, None, None, **options)
    except TypeError as error:
        raise LossError(
            f"loss={loss.kind!r}: it cannot be called as function(outputs, labels, weights"
            f"{''.join(f', {name}=...' for name in options)}): {error}"
        ) from None
    except ValueError:  # a callable without a signature
        pass
    return functools.partial(_compute_user, loss.kind, function, options)


def _compute_user(
    kind: str, function: Callable[..., Any], options: Mapping[str, Any], outputs: Any, labels: Any, weights: Any
) -> Values:
    """What a loss of the user's own makes of a batch: ``Values``, or the values [B] alone."""
    labels = loss_kinds.use_present(labels, weights)
    try:
        found = function(outputs, labels, weights, **options)
        found = Values(*found) if isinstance(found, tuple) else Values(tf.convert_to_tensor(found), weights)
        if weights is not None and found.weights is None:
            raise LossError(
                f"loss={kind!r}: it was given weights, and returned values without; expected Values(values, weights, ...), or "
                "values alone, which are then weighted"
            )
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise LossError(f"loss={kind!r}: it raised {describe_error(error)}") from None
    if getattr(found.values, "shape", None) is None or found.values.shape.rank != 1:
        raise LossError(
            f"loss={kind!r}: it returned values of shape {getattr(found.values, 'shape', type(found.values).__name__)}; expected "
            "one value for each example, [B], not their mean"
        )
    return found


def _labels(loss: TaskLoss, batch: Mapping[str, Any]) -> Any:
    name = label_name(loss.name)
    if name not in batch:
        raise LossError(
            f"loss: the batch has no {name!r}, only {join_words(batch)}"
            + (
                "; the data have no task of this name"
                if loss.name
                else "; where data have several labels, --loss names them"
            )
        )
    return batch[name]


def find_weights(task: str, batch: Mapping[str, Any]) -> Any:
    """The weights of the examples in a batch for a task ("" for the only one), or None."""
    own, general = batch.get(weight_name(task)), batch.get(WEIGHT)
    if not task or general is None:
        return own
    return general if own is None else tf.cast(own, tf.float32) * tf.cast(general, tf.float32)


def _no_names(outputs: Any, loss: TaskLoss) -> str:
    what = (
        f"its outputs are {join_words(outputs)}" if isinstance(outputs, Mapping) else f"it returns {_describe(outputs)}"
    )
    return (
        f"loss={loss.kind}: the network has several outputs: {what}; name the loss of each, as in "
        f"'{', '.join(f'{name}={loss.kind}' for name in outputs) if isinstance(outputs, Mapping) else 'species=softmax, age=mse'}'"
    )


def _describe(outputs: Any) -> str:
    return f"a tensor {outputs.shape}" if tf.is_tensor(outputs) else f"{type(outputs).__name__}"
