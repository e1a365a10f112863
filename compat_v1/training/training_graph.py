"""Builds the graph of a training run in TF1 style: forward, backward, train op, evaluation and Saver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from compat_v1.errors import SessionError
from compat_v1.training.freezing import Freezing
from compat_v1.training.train_op import TrainOp
from engine.training import losses
from engine.training.losses import LossFunction
from engine.training.optimizers import Optimizer
from engine.training.precision import wide_type

v1 = tf.compat.v1

_ACCUMULATORS = "accumulators"


class Runs(NamedTuple):
    """What a step fetches and runs.

    ``report`` has the loss, values, weights and metrics, and grad_norm if the step is not computed in parts;
    ``weighted`` is term -> the sum of its weights, for terms that have weights. If the step is computed in parts,
    ``train_op`` applies the gradients that ``add`` added since ``clear``, and ``norm`` is the global norm of the
    unscaled gradients.
    """

    report: Mapping[str, Any]
    weighted: Mapping[str, Any]
    train_op: Any
    clear: Any = None
    add: Any = None
    norm: Any = None


class TrainingGraph:
    """A training graph and the tensors and operations that a session runs.

    Raises FreezingError and SessionError as session_loop.SessionLoop does, whose arguments it takes. Gradients are
    accumulated and applied separately if ``in_parts`` says so, and if examples have weights, since their sum over the
    step must be known first.

    Attributes:
        inputs: name -> placeholder [B, ...].
        rate, scale, share, divisors: the placeholders of the learning rate, the loss scale, the micro-batch's share of
            the step's examples, and the step's summed weights by term.
        runs, evaluated: what a step fetches and runs; the sums of terms and of metrics in inference mode.
        variables: path -> variable of the model.
        gradients: the result of the freezing method (freezing.Gradients).
        slots, slot_bytes: the names of the optimizer's slots, and their size.
        backward_ops: the number of operations that only the gradients need.
        setters: name -> (placeholder, operation that assigns it).
        initialise, saver, steps: the initialiser and Saver of all variables, and the global step.
        scale_saved: the loss scale as the Saver stores it: [scale, finite steps since it changed].
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        freezing: Freezing,
        optimizer: Optimizer,
        batch: Mapping[str, np.ndarray],
        *,
        in_parts: bool,
        seed: int,
    ) -> None:
        self.freezing = freezing
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.set_random_seed(seed)
            self._build(loss_fn, optimizer, batch, in_parts)
            self._finish()

    def _build(
        self, loss_fn: LossFunction, optimizer: Optimizer, batch: Mapping[str, np.ndarray], in_parts: bool
    ) -> None:
        if "seeds" not in batch:
            raise SessionError(f"batch: expected seeds (int32 [B, 2]); it has {', '.join(batch)}")
        self.inputs = {
            name: v1.placeholder(value.dtype, [None, *value.shape[1:]], name=f"inputs/{name}")
            for name, value in batch.items()
        }
        self.rate = v1.placeholder(tf.float64, [], name="learning_rate")
        self.scale = v1.placeholder_with_default(tf.constant(1.0, tf.float64), [], name="loss_scale")
        self.share = v1.placeholder_with_default(tf.constant(1.0, tf.float64), [], name="share")
        examples = {name: tensor for name, tensor in self.inputs.items() if name != "seeds"}
        with self.freezing.scope():
            loss = loss_fn(examples, training=True, seeds=self.inputs["seeds"])
        self.in_parts = split = in_parts or any(weights is not None for _, weights in loss.terms.values())
        sums = losses.weighted_sums(loss.terms)
        if not sums:
            raise SessionError("the loss has no term: Loss.terms is empty")
        self.terms, dtype = tuple(sums), next(iter(sums.values()))[0].dtype
        trained = frozenset(path for entry in self.freezing.selection.trained for path in entry.paths)
        penalties = [tf.cast(penalty, dtype) for penalty in v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)]
        regulariser = tf.add_n([losses.sum_regulariser(loss, trained, dtype), *penalties])
        self.divisors = v1.placeholder(tf.float64, [len(sums)], name="divisors")
        total = losses.build_objective(
            sums, regulariser, divisors=self.divisors if split else None, share=self.share if split else None
        )
        weighted = {name: sums[name][1] for name in sums if loss.terms[name][1] is not None}

        variables = v1.global_variables()
        made = {variable.op.name: variable for variable in variables}
        self.variables = {e.path: made[e.path] for e in self.freezing.selection.variables if e.path in made}
        self._update_ops = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        self.steps = v1.train.get_or_create_global_step()
        dtypes = {variable.dtype.base_dtype for variable in self.variables.values()}
        self.updates = TrainOp(optimizer, self.freezing.selection, self.rate, dtypes)

        before = set(self.graph.get_operations())
        self.gradients = self.freezing.compute_gradients(self.updates.first, total * tf.cast(self.scale, total.dtype))
        self.backward_ops = len(set(self.graph.get_operations()) - before)
        pairs = [(tf.convert_to_tensor(gradient), variable) for gradient, variable in self.gradients.applied]
        metrics = losses.weighted_sums(loss.metrics)
        report = {
            "loss": total,
            "values": [value for value, _ in sums.values()],
            "weights": [weight for _, weight in sums.values()],
            "metrics": {name: list(pair) for name, pair in metrics.items()},
        }
        self.runs = self._accumulate(pairs, report, weighted) if split else self._train_at_once(pairs, report)
        with self.freezing.scope(), v1.variable_scope(v1.get_variable_scope(), reuse=True):
            evaluated = loss_fn(examples, training=False, seeds=self.inputs["seeds"])
        self.evaluated = [losses.weighted_sums(part) for part in (evaluated.terms, evaluated.metrics)]

    def _train_at_once(self, pairs: list[tuple[Any, Any]], report: dict[str, Any]) -> Runs:
        """Builds the train op as in TF1 programs: update ops, then the optimizer; nothing runs if a number is not finite."""
        norm = tf.linalg.global_norm([gradient for gradient, _ in pairs])
        finite = tf.math.is_finite(norm) & tf.math.is_finite(report["loss"])
        check = tf.raw_ops.Assert(condition=finite, data=[norm], name="finite")
        with tf.control_dependencies([*self._update_ops, check]):
            train_op = self.updates.apply(pairs, norm, self.steps)
        return Runs(report | {"grad_norm": norm}, {}, train_op)

    def _accumulate(self, pairs: list[tuple[Any, Any]], report: dict[str, Any], weighted: dict[str, Any]) -> Runs:
        """Builds accumulators for the sum of the micro-batches' scaled gradients, and the operations that use it."""
        sums = [
            v1.Variable(
                tf.zeros(variable.shape, wide_type(variable.dtype.base_dtype)),
                trainable=False,
                collections=[_ACCUMULATORS],
                name=f"{_ACCUMULATORS}/{variable.op.name}",
            )
            for _, variable in pairs
        ]
        clear = tf.group([v1.assign(total, tf.zeros_like(total)) for total in sums])
        added = [v1.assign_add(total, gradient) for total, (gradient, _) in zip(sums, pairs, strict=True)]
        add = tf.group([*added, *self._update_ops])
        gradients = [total * tf.cast(1.0 / self.scale, total.dtype) for total in sums]
        norm = tf.linalg.global_norm(gradients)
        found = [(gradient, variable) for gradient, (_, variable) in zip(gradients, pairs, strict=True)]
        return Runs(report, weighted, self.updates.apply(found, norm, self.steps), clear, add, norm)

    def _finish(self) -> None:
        """Builds what needs all variables to exist: initialisers, setters and the Saver."""
        v1.add_to_collection(v1.GraphKeys.TRAIN_OP, self.runs.train_op)
        slots = self.updates.slots(list(self.variables.values()))
        self.slots = [slot.op.name for slot in slots]
        self.slot_bytes = sum(slot.shape.num_elements() * slot.dtype.base_dtype.size for slot in slots)
        # the loss scale lives on the host; this variable is only for the Saver
        self.scale_saved = v1.get_variable(
            "loss_scale_saved", [2], tf.float64, v1.zeros_initializer(), trainable=False, use_resource=True
        )
        saved = v1.global_variables()
        self.setters = {}
        for variable in saved:
            value = v1.placeholder(variable.dtype.base_dtype, variable.shape, name=f"set/{variable.op.name}")
            self.setters[variable.op.name] = (value, v1.assign(variable, value).op)
        self.initialise = v1.variables_initializer(saved + v1.get_collection(_ACCUMULATORS))
        self.saver = v1.train.Saver(saved, max_to_keep=2, save_relative_paths=True)
