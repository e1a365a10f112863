"""The test kit of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.seeds import example_seeds
from engine.selection.proof import digests
from engine.selection.selection import Selection, select
from engine.selection.variables import is_keras, name_variables
from engine.testing.contract import calling, demand, list_some, nearly_same, same_bits
from engine.training.losses import accepted_keywords

_CLOSE = 1e-4  # relative, of float32: another batch size uses other kernels


def check_model(model: Any, inputs: Any, *, outputs: int | Mapping[str, int] | None = None) -> None:
    """Checks a network: that rows are independent, that it is deterministic, and that its variables get gradients.

    Args:
        model: a ``tf.Module`` or Keras model that is called as ``model(x, training=..., seeds=...)``, of which it may leave
            out both keywords. x is a tensor, or a dict of tensors where there are several inputs; it returns a tensor
            [B, ...], or a dict of tensors by the names of its outputs.
        inputs: the shape of an example, such as (28, 28, 1), for which normal random numbers are taken; or a batch: an array
            [B, ...], or a dict of arrays, with at least 3 examples.
        outputs: the number of outputs that is expected, or the numbers by name; None accepts any.

    Raises:
        ContractError: the model breaks a rule of the contract.

    Example:
        >>> from engine import build_model
        >>> from engine.testing import check_model
        >>> check_model(build_model("cnn:mini", image_shape=(8, 8, 1), outputs=3).network, (8, 8, 1), outputs=3)
    """
    demand(callable(model), f"the model is {type(model).__name__}, which cannot be called")
    demand(
        is_keras(model) or isinstance(model, tf.Module),
        f"the model is {type(model).__name__}; expected a tf.Module or a Keras model, whose variables have names",
    )
    run = _Run(model, _make_batch(inputs))
    first = run(training=False)
    _check_outputs(first, run.count, outputs)
    with calling("naming the variables"):
        chosen = select(model, "@all")
    _check_variables(run, chosen)
    again = run(training=False)
    for name, value in first.items():
        demand(
            same_bits(value, again[name]),
            f"{_named(name)} differs when the model is called again with training=False; it must be deterministic, without "
            "dropout",
        )
    _check_rows(run, first)
    _check_training(run, chosen, first)
    _check_traced(run, first)
    _check_gradients(run, chosen)


class _Run:
    """A model with a batch, called as a step calls it."""

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
        self.model, self.batch = model, batch
        self.taken = accepted_keywords(model)
        self.count = len(next(iter(batch.values())))

    def __call__(self, at: Any = None, *, training: bool, seed: int = 0) -> dict[str, np.ndarray]:
        """The outputs of the whole batch, or of some of its examples, by name; "" is the only one."""
        chosen = np.arange(self.count) if at is None else np.asarray(at)
        x = {name: tf.constant(value[chosen]) for name, value in self.batch.items()}
        return {name: value.numpy() for name, value in self.call(x, chosen, training=training, seed=seed).items()}

    def call(
        self, x: Mapping[str, Any], numbers: np.ndarray, *, training: bool, seed: int = 0, where: str = ""
    ) -> dict[str, Any]:
        given = {"training": training, "seeds": tf.constant(example_seeds(seed, 0, numbers.astype(np.int64)))}
        with calling(f"{where}the model with training={training}"):
            found = self.model(x[""] if "" in x else dict(x), **{name: given[name] for name in self.taken})
        demand(
            isinstance(found, Mapping) or tf.is_tensor(found),
            f"the model returned {type(found).__name__}; expected a tensor [B, ...], or a dict of tensors by name",
        )
        return dict(found) if isinstance(found, Mapping) else {"": found}


def _make_batch(inputs: Any) -> dict[str, Any]:
    """The inputs by name; "" is the only one."""
    if isinstance(inputs, Mapping):
        batch = {str(name): np.asarray(value) for name, value in inputs.items()}
    elif isinstance(inputs, Sequence) and all(isinstance(size, int) for size in inputs):
        batch = {"": np.random.default_rng(0).standard_normal((4, *inputs)).astype(np.float32)}
    else:
        batch = {"": np.asarray(inputs)}
    sizes = {len(value) if value.ndim else 0 for value in batch.values()}
    demand(
        batch and len(sizes) == 1 and min(sizes) >= 3,
        f"check_model: the inputs have {sorted(sizes)} examples; expected a batch of 3 or more, or the shape of an example",
    )
    batch = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in batch.items()}
    return batch if len(batch) > 1 else {"": next(iter(batch.values()))}


def _named(name: str) -> str:
    return f"the output {name!r}" if name else "the output"


def _check_outputs(found: Mapping[str, np.ndarray], count: int, outputs: int | Mapping[str, int] | None) -> None:
    for name, value in found.items():
        demand(isinstance(name, str), f"{name!r} is not the name of an output; expected a text")
        demand(
            value.ndim >= 2 and len(value) == count,
            f"{_named(name)} has shape {list(value.shape)} for {count} examples; expected [{count}, ...]",
        )
        demand(value.dtype.kind == "f" or value.dtype.name == "bfloat16", f"{_named(name)} is {value.dtype}, not float")
        demand(np.isfinite(value.astype(np.float64)).all(), f"{_named(name)} is not finite")
    if outputs is None:
        return
    wanted = {"": outputs} if isinstance(outputs, int) else dict(outputs)
    sizes = {name: value.shape[-1] for name, value in found.items()}
    demand(sizes == wanted, f"the model has the outputs {_sizes(sizes)}; expected {_sizes(wanted)}")


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} [{size}]" if name else str(size) for name, size in sizes.items()) or "none"


def _check_variables(run: _Run, chosen: Selection) -> None:
    """A call must create no variables, and in inference change none."""
    before = digests(list(chosen.variables))
    run(training=False)
    after = digests(list(name_variables(run.model)))
    new = sorted(set(after) - set(before))
    demand(
        not new,
        f"a second call created variables: {list_some(new)}; create all of them in the first one, or in __init__",
    )
    changed = [path for path, digest in before.items() if after.get(path) != digest]
    demand(not changed, f"a call with training=False changed variables: {list_some(changed)}")
    demand(chosen.trained, "none of the variables can be trained")


def _check_rows(run: _Run, whole: Mapping[str, np.ndarray]) -> None:
    """In inference, the outputs of an example must depend on it alone."""
    for at in ([0], [run.count - 1], [1, 0], list(range(run.count))[::-1]):
        for name, value in run(at, training=False).items():
            demand(
                nearly_same(value, whole[name][at], relative=_CLOSE),
                f"{_named(name)} of example {at[0]} is another one in a batch of {len(at)}; with training=False, the outputs of "
                "an example must not depend on the others, or on its place in the batch",
            )


def _check_training(run: _Run, chosen: Selection, inference: Mapping[str, np.ndarray]) -> None:
    """With training=True and the same seeds, it must compute the same."""
    with _restored(chosen):
        first = run(training=True, seed=1)
    with _restored(chosen):
        second = run(training=True, seed=1)
    demand(
        {name: value.shape for name, value in first.items()} == {name: v.shape for name, v in inference.items()},
        "with training=True the outputs have other names or shapes than with training=False",
    )
    if is_keras(run.model):
        return  # its layers draw random numbers of their own
    for name, value in first.items():
        demand(
            same_bits(value, second[name]),
            f"{_named(name)} with training=True differs when it is computed again from the same seeds; draw random numbers from "
            "the argument `seeds`, int32 [B, 2], as engine.models.layers.dropout does",
        )
    if chosen.variables.statistics_layers or "seeds" not in run.taken:
        return
    with _restored(chosen):
        alone = run([1], training=True, seed=1)
    for name, value in alone.items():
        demand(
            nearly_same(value, first[name][[1]], relative=_CLOSE),
            f"{_named(name)} of example 1 with training=True depends on the others in the batch, so that a step cannot be divided "
            "into micro-batches; draw its random numbers from its own row of `seeds`",
        )


class _restored:  # noqa: N801  (a scope)
    """A scope after which all variables are as before: statistics may move in training."""

    def __init__(self, chosen: Selection) -> None:
        self._variables = chosen.variables.with_bookkeeping()

    def __enter__(self) -> None:
        self._values = [variable.numpy() for variable in self._variables]

    def __exit__(self, *_: object) -> None:
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


def _check_traced(run: _Run, whole: Mapping[str, np.ndarray]) -> None:
    """It must work in a graph, for any number of examples."""
    specs = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in run.batch.items()}
    numbers = np.arange(run.count)

    def compute(x: Mapping[str, Any]) -> Any:
        return run.call(x, numbers, training=False, where=graph)

    graph = "in a tf.function with a batch of any size, "
    with calling(f"{graph}the model"):
        found = tf.function(compute, autograph=False).get_concrete_function(specs)
        traced = found({name: tf.constant(value) for name, value in run.batch.items()})
    for name, value in traced.items():
        demand(
            nearly_same(value.numpy(), whole[name], relative=_CLOSE),
            f"{_named(name)} is another one in a tf.function; use TensorFlow operations alone, not Python or numpy values",
        )


def _check_gradients(run: _Run, chosen: Selection) -> None:
    """Each variable that can train must have a gradient, and a finite one."""
    x = {name: tf.constant(value) for name, value in run.batch.items()}
    variables = [entry.variable for entry in chosen.trained]
    with _restored(chosen), tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        found = run.call(x, np.arange(run.count), training=True)
        total = tf.add_n([tf.reduce_sum(tf.square(tf.cast(value, tf.float32) - 0.5)) for value in found.values()])
    gradients = tape.gradient(total, variables)
    missing = [entry.path for entry, each in zip(chosen.trained, gradients, strict=True) if each is None]
    demand(not missing, f"the outputs do not depend on {list_some(missing)}; remove what is not used")
    wrong = [
        entry.path
        for entry, each in zip(chosen.trained, gradients, strict=True)
        if not np.isfinite(tf.convert_to_tensor(each).numpy().astype(np.float64)).all()
    ]
    demand(not wrong, f"the gradient is not finite for {list_some(wrong)}")
