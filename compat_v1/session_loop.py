"""Training in a Session: one graph for a Selection and a freezing method, driven window by window.

The window means what it means in the engine: terms are summed over micro-batches and divided once by
the window's summed weights, the regulariser enters once, and a window that is not finite changes nothing.
With one micro-batch it is one ``Session.run`` of a train op; with more, or with a loss scale, gradients
are added up in accumulators and the host decides whether they are applied.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.freezing import Freezing
from engine import losses
from engine.errors import InputError
from engine.losses import LossFunction
from engine.optimizers import SGD, Adam, AdamW, Momentum, Optimizer
from engine.precision import LossScale, wide_type
from engine.step import NonFiniteError, Window

v1 = tf.compat.v1

_ACCUMULATORS = "accumulators"


class SessionError(InputError):
    """A batch, an optimizer or a checkpoint that the session loop cannot work with."""


class SessionLoop:
    """Trains, evaluates, saves and restores one graph.

    Args:
        loss_fn: ``loss_fn(batch, *, training, seeds) -> Loss`` (engine.losses), building its model with
            get_variable. REGULARIZATION_LOSSES of the training graph are added to its regulariser.
        freezing: how, and what, to freeze.
        optimizer: engine.optimizers' SGD, Momentum or Adam, whose tf.compat.v1.train forms train.
        batch: an example of the batches to come: names, dtypes, shapes.
        micro_batch_size: examples per micro-batch; None computes a window in one piece.
        loss_scale: dynamic, which a model that computes in float16 needs.
        seed: of the initial weights, where ``assign`` does not give others.
        summaries: folder for TensorBoard's scalars, or None.

    Attributes:
        graph, session: where it all is.
        variables: path -> variable of the model.
        gradients: what the freezing method gave (freezing.Gradients).
        slots: names of the optimizer's slots.
        backward_ops: operations that only the gradients need.

    Raises:
        FreezingError: the graph contradicts the selection.
        SessionError: see its message.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        freezing: Freezing,
        optimizer: Optimizer,
        batch: Mapping[str, Any],
        *,
        micro_batch_size: int | None = None,
        loss_scale: LossScale | None = None,
        seed: int = 0,
        summaries: pathlib.Path | None = None,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise SessionError(f"micro_batch_size={micro_batch_size}: it must be at least 1")
        self.freezing = freezing
        self.micro_batch_size = micro_batch_size
        self.loss_scale = loss_scale
        self.skipped = 0
        self._saver_step = 0
        self.graph = tf.Graph()
        with self.graph.as_default():
            v1.set_random_seed(seed)
            self._build(loss_fn, optimizer, {n: np.asarray(v) for n, v in batch.items() if n != "index"})
            self._finish()
            self.session = v1.Session()
            self.session.run(self._initialise)
            self._writer = None if summaries is None else v1.summary.FileWriter(str(summaries), self.graph)

    # ---- the graph

    def _build(self, loss_fn: LossFunction, optimizer: Optimizer, batch: Mapping[str, np.ndarray]) -> None:
        if "seeds" not in batch:
            raise SessionError(f"batch: it has {', '.join(batch)}; seeds (int32 [B, 2]) are missing")
        self._inputs = {
            name: v1.placeholder(value.dtype, [None, *value.shape[1:]], name=f"inputs/{name}")
            for name, value in batch.items()
        }
        self._rate = v1.placeholder(tf.float64, [], name="learning_rate")
        self._scale = v1.placeholder_with_default(tf.constant(1.0, tf.float64), [], name="loss_scale")
        self._share = v1.placeholder_with_default(tf.constant(1.0, tf.float64), [], name="share")
        examples = {name: tensor for name, tensor in self._inputs.items() if name != "seeds"}
        with self.freezing.scope():
            loss = loss_fn(examples, training=True, seeds=self._inputs["seeds"])
        weighted = any(weights is not None for _, weights in loss.terms.values())
        self._split = split = self.micro_batch_size is not None or self.loss_scale is not None or weighted
        sums = losses.weighted_sums(loss.terms)
        if not sums:
            raise SessionError("the loss has no term: Loss.terms is empty")
        self._terms, dtype = tuple(sums), next(iter(sums.values()))[0].dtype
        trained = frozenset(path for entry in self.freezing.selection.trained for path in entry.paths)
        penalties = [tf.cast(penalty, dtype) for penalty in v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)]
        regulariser = tf.add_n([losses.regulariser_of(loss, trained, dtype), *penalties])
        self._divisors = v1.placeholder(tf.float64, [len(sums)], name="divisors")
        total = losses.objective(
            sums, regulariser, divisors=self._divisors if split else None, share=self._share if split else None
        )
        self._weighted = {name: sums[name][1] for name in sums if loss.terms[name][1] is not None}

        variables = v1.global_variables()
        made = {variable.op.name: variable for variable in variables}
        self.variables = {e.path: made[e.path] for e in self.freezing.selection.variables if e.path in made}
        self._updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        self.steps = v1.train.get_or_create_global_step()
        self.optimizer = optimizer_of(optimizer, self._rate, {v.dtype.base_dtype for v in self.variables.values()})

        before = set(self.graph.get_operations())
        self.gradients = self.freezing.compute_gradients(self.optimizer, total * tf.cast(self._scale, total.dtype))
        self.backward_ops = len(set(self.graph.get_operations()) - before)
        pairs = [(_dense(gradient), variable) for gradient, variable in self.gradients.applied]
        metrics = losses.weighted_sums(loss.metrics)
        self._report = {
            "loss": total,
            "values": [value for value, _ in sums.values()],
            "weights": [weight for _, weight in sums.values()],
            "metrics": {name: list(pair) for name, pair in metrics.items()},
        }
        if split:
            self._accumulate(pairs)
        else:
            self._train_at_once(pairs)
        with self.freezing.scope(), v1.variable_scope(v1.get_variable_scope(), reuse=True):
            evaluated = loss_fn(examples, training=False, seeds=self._inputs["seeds"])
        self._evaluated = [losses.weighted_sums(part) for part in (evaluated.terms, evaluated.metrics)]

    def _train_at_once(self, pairs: list[tuple[Any, Any]]) -> None:
        """The train op as TF1 programs have it: update ops, then the optimizer; nothing if a number is not finite."""
        norm = tf.linalg.global_norm([gradient for gradient, _ in pairs])
        finite = tf.math.is_finite(norm) & tf.math.is_finite(self._report["loss"])
        check = tf.raw_ops.Assert(condition=finite, data=[norm], name="finite")
        with tf.control_dependencies([*self._updates, check]):
            self.train_op = self.optimizer.apply_gradients(pairs, global_step=self.steps, name="train")
        self._report["grad_norm"] = norm

    def _accumulate(self, pairs: list[tuple[Any, Any]]) -> None:
        """Accumulators that hold the sum of the micro-batches' gradients, still scaled, and what applies it."""
        sums = [
            v1.Variable(
                tf.zeros(variable.shape, wide_type(variable.dtype.base_dtype)),
                trainable=False,
                collections=[_ACCUMULATORS],
                name=f"{_ACCUMULATORS}/{variable.op.name}",
            )
            for _, variable in pairs
        ]
        self._clear = tf.group([v1.assign(total, tf.zeros_like(total)) for total in sums])
        added = [v1.assign_add(total, gradient) for total, (gradient, _) in zip(sums, pairs, strict=True)]
        self._add = tf.group([*added, *self._updates])
        gradients = [total * tf.cast(1.0 / self._scale, total.dtype) for total in sums]
        self._norm = tf.linalg.global_norm(gradients)
        self.train_op = self.optimizer.apply_gradients(
            [(gradient, variable) for gradient, (_, variable) in zip(gradients, pairs, strict=True)],
            global_step=self.steps,
            name="train",
        )

    def _finish(self) -> None:
        """What needs all variables to be there: initialisers, ways to set values, the Saver, summaries."""
        v1.add_to_collection(v1.GraphKeys.TRAIN_OP, self.train_op)
        self.slots = [
            slot.op.name
            for name in self.optimizer.get_slot_names()
            for variable in self.variables.values()
            if (slot := self.optimizer.get_slot(variable, name)) is not None
        ]
        # the loss scale lives on the host; here it is for the Saver alone
        self._scale_saved = v1.get_variable(
            "loss_scale_saved", [2], tf.float64, v1.zeros_initializer(), trainable=False, use_resource=True
        )
        saved = v1.global_variables()
        self._set = {}
        for variable in saved:
            value = v1.placeholder(variable.dtype.base_dtype, variable.shape, name=f"set/{variable.op.name}")
            self._set[variable.op.name] = (value, v1.assign(variable, value).op)
        self._initialise = v1.variables_initializer(saved + v1.get_collection(_ACCUMULATORS))
        self._saver = v1.train.Saver(saved, max_to_keep=2, save_relative_paths=True)

    # ---- a window

    def step(self, batch: Mapping[str, Any], *, learning_rate: float) -> Window:
        """Trains on one window.

        Args:
            batch: name -> array [B, ...] as at the making; "index" is not used.
            learning_rate: of this window.

        Raises:
            NonFiniteError: without a loss scale, a loss or gradient that is not finite; nothing has changed.
            LossError: a negative weight.
        """
        arrays = {n: np.asarray(v) for n, v in batch.items() if n != "index"}
        statistics = [self.variables[entry.path] for entry in self.freezing.selection.moving]
        before = self.session.run(statistics)
        found = self._in_parts(arrays, learning_rate) if self._split else self._at_once(arrays, learning_rate)
        finite = found is not None and _finite(found)
        skipped = found is None or not found["applied"]
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        if skipped:
            self.assign({e.path: v for e, v in zip(self.freezing.selection.moving, before, strict=True)})
            if self.loss_scale is None and not finite:
                raise NonFiniteError("a window was not applied: its loss or its gradient is not finite")
            self.skipped += 1
        assert found is not None
        weights = dict(zip(self._terms, found["weights"], strict=True))
        losses.check_weights(weights)
        window = Window(
            loss=found["loss"],
            terms={n: v / w if w else 0.0 for (n, w), v in zip(weights.items(), found["values"], strict=True)},
            metrics={name: value / mass if mass else 0.0 for name, (value, mass) in found["metrics"].items()},
            grad_norm=found["grad_norm"],
            skipped=skipped,
            loss_scale=scale,
        )
        self._summarise(window, learning_rate)
        return window

    def _at_once(self, arrays: Mapping[str, np.ndarray], rate: float) -> dict[str, Any] | None:
        try:
            _, found = self.session.run([self.train_op, self._report], self._feed(arrays) | {self._rate: rate})
        except tf.errors.InvalidArgumentError as error:
            if error.op is not None and error.op.name.startswith("finite"):
                return None
            raise
        return found | {"applied": True}

    def _in_parts(self, arrays: Mapping[str, np.ndarray], rate: float) -> dict[str, Any]:
        count = len(next(iter(arrays.values())))
        size = self.micro_batch_size or count
        weights = self.session.run(self._weighted, self._feed(arrays)) if self._weighted else {}
        losses.check_weights(weights)
        divisors = [float(weights.get(name, count)) for name in self._terms]
        scale = self.loss_scale.scale if self.loss_scale is not None else 1.0
        self.session.run(self._clear)
        found: dict[str, Any] = {}
        for start in range(0, count, size):
            part = {name: value[start : start + size] for name, value in arrays.items()}
            share = min(size, count - start) / count
            feed = self._feed(part) | {self._divisors: divisors, self._share: share, self._scale: scale}
            _, more = self.session.run([self._add, self._report], feed)
            found = dict(more) if not found else tf.nest.map_structure(lambda a, b: a + b, found, dict(more))
        found["grad_norm"] = self.session.run(self._norm, {self._scale: scale})
        # a window without any weight has no gradient: zeros would still move by momentum
        found["applied"] = _finite(found) and any(divisors)
        if found["applied"]:
            self.session.run(self.train_op, {self._rate: rate, self._scale: scale})
        return found

    def _feed(self, arrays: Mapping[str, np.ndarray]) -> dict[Any, Any]:
        return {placeholder: arrays[name] for name, placeholder in self._inputs.items()}

    def _summarise(self, window: Window, rate: float) -> None:
        if self._writer is None:
            return
        scalars = {"loss": window.loss, "grad_norm": window.grad_norm, "learning_rate": rate}
        scalars |= window.metrics
        values = [v1.Summary.Value(tag=f"train/{name}", simple_value=float(value)) for name, value in scalars.items()]
        self._writer.add_summary(v1.Summary(value=values), self.windows)
        self._writer.flush()

    # ---- evaluation, values, files

    def evaluate(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """ "loss" (no regulariser) and each metric, weighted means over all batches, in inference mode."""
        totals: list[dict[str, np.ndarray]] = [{}, {}]
        for batch in batches:
            arrays = {n: np.asarray(v) for n, v in batch.items() if n != "index"}
            for total, found in zip(totals, self.session.run(self._evaluated, self._feed(arrays)), strict=True):
                for name, pair in found.items():
                    total[name] = total.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        means = [{name: float(v / w) if w else 0.0 for name, (v, w) in total.items()} for total in totals]
        return {"loss": sum(means[0].values()), **means[1]}

    @property
    def windows(self) -> int:
        """Windows applied so far: the global step."""
        return int(self.session.run(self.steps))

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets variables of the live session by name: ``tf.compat.v1.assign`` of a placeholder.

        Raises:
            SessionError: there is no such variable, or the shape is another; nothing is set then.
        """
        for name, value in values.items():
            if name not in self._set:
                raise SessionError(f"variable {name!r}: the graph has none of that name")
            wanted = tuple(self._set[name][0].shape)
            if tuple(np.shape(value)) != wanted:
                raise SessionError(f"variable {name!r}: shape {list(np.shape(value))}, {list(wanted)} is wanted")
        for name, value in values.items():
            placeholder, operation = self._set[name]
            self.session.run(operation, {placeholder: value})

    def values(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, value) of every variable of the model, one at a time, in the selection's order."""
        for path, variable in self.variables.items():
            yield path, self.session.run(variable)

    def save(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes a checkpoint of all variables, slots and the step included; the newest two stay. Returns its prefix."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.loss_scale is not None:
            self.assign({"loss_scale_saved": np.array([self.loss_scale.scale, self.loss_scale.good], np.float64)})
        with self.graph.as_default():
            prefix = self._saver.save(self.session, str(folder / "model.ckpt"), self.steps, write_meta_graph=True)
        return pathlib.Path(prefix)

    def restore(self, folder: pathlib.Path, *, warn: Callable[[str], None] = print) -> int:
        """Takes the newest checkpoint that is whole; a damaged one is named and the one before it taken.

        Returns:
            Windows trained by then; 0 where the folder has no checkpoint at all.

        Raises:
            SessionError: there are checkpoints, but none can be restored.
        """
        state = v1.train.get_checkpoint_state(str(folder))
        prefixes = [] if state is None else list(reversed(state.all_model_checkpoint_paths))
        for prefix in prefixes:
            try:
                with self.graph.as_default():
                    self._saver.restore(self.session, prefix)
            except (tf.errors.OpError, ValueError, IndexError) as error:
                warn(f"{prefix}: it cannot be restored ({str(error).splitlines()[0][:200]})")
                continue
            if self.loss_scale is not None:
                scale, good = self.session.run(self._scale_saved)
                if scale:
                    self.loss_scale.scale, self.loss_scale.good = float(scale), int(good)
            return self.windows
        if prefixes:
            raise SessionError(f"{folder}: none of its {len(prefixes)} checkpoints can be restored")
        return 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.session.close()

    def __enter__(self) -> SessionLoop:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def optimizer_of(optimizer: Optimizer, rate: Any, dtypes: set[Any]) -> Any:
    """The tf.compat.v1.train optimizer of the same rule.

    Args:
        optimizer: of the engine.
        rate: learning rate, a float64 scalar tensor.
        dtypes: of the variables. Float64 ones get numpy float64 hyperparameters: TF1 keeps Python floats as
            float32, whatever it trains.

    Raises:
        SessionError: tf.compat.v1.train has no such rule.
    """
    if optimizer.weight_decay or optimizer.layer_decay is not None or optimizer.clip_norm is not None:
        raise SessionError(
            "optimizer: the TF1 path trains as tf.compat.v1.train does, without weight_decay, layer_decay and clip_norm"
        )
    number: Callable[[float], Any] = np.float64 if tf.float64 in dtypes else float
    rate = rate if tf.float64 in dtypes else tf.cast(rate, tf.float32)
    if isinstance(optimizer, Adam) and not isinstance(optimizer, AdamW):
        return v1.train.AdamOptimizer(rate, number(optimizer.beta1), number(optimizer.beta2), number(optimizer.epsilon))
    if isinstance(optimizer, Momentum):
        return v1.train.MomentumOptimizer(rate, number(optimizer.momentum), use_nesterov=optimizer.nesterov)
    if isinstance(optimizer, SGD):
        return v1.train.GradientDescentOptimizer(rate)
    raise SessionError(
        f"optimizer={type(optimizer).__name__}: tf.compat.v1.train has none; sgd, momentum and adam are known"
    )


def _finite(found: Mapping[str, Any]) -> bool:
    return bool(np.isfinite(found["grad_norm"]) and np.isfinite(found["loss"]))


def _dense(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient)
