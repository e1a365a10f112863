"""Proves that a ported model computes what the original does: runs both on one input and reports the differences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.endpoints import tensor_name
from compat_v1.graphs.extract import Extracted, Input
from compat_v1.porting.apart import check_numbers
from engine import tensorflow_private
from engine.porting.rules import transforms
from engine.porting.rules.transforms import Spec, Target, Transform
from engine.selection.variables import is_keras
from engine.text import join_some, nearest
from engine.training.losses import accepted_keywords

_MOST_ELEMENTS = 1 << 28  # in a generated input
BOUND = 1e-5  # contract E6: absolute, on outputs of unit scale


class Runnable(Protocol):
    """The old network: ``Original`` runs it in this process, ``Apart`` in one of its own."""

    extracted: Extracted

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Compared:
    """One output of the old graph, by its tensor, and the output that it is compared with.

    ``key`` is the name or number of an output of the new model; None for the one in the same place. The transforms
    bring the old output into the layout of the new one.
    """

    name: str
    key: str | None = None
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class Difference:
    """How far one output is off: a tensor of the old graph, and the name or number (``key``) of the new model's output.

    ``max_abs_difference`` is infinite where the new model's value is not finite, and ``at`` its index, () for a scalar;
    ``original`` and ``ported`` are the two values there. ``scale`` is the largest absolute value of the original.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    max_abs_difference: float
    at: tuple[int, ...]
    original: float
    ported: float
    scale: float


@dataclass(frozen=True)
class Parity:
    """What the comparison found for each output, with the shapes of the fed values and remarks for the user."""

    outputs: tuple[Difference, ...]
    inputs: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def max_abs_difference(self) -> float:
        return max(output.max_abs_difference for output in self.outputs)

    def holds(self, bound: float = BOUND) -> bool:
        """Whether every output is within the bound, which is relative for outputs of more than unit scale."""
        return all(output.max_abs_difference <= bound * max(1.0, output.scale) for output in self.outputs)

    def summary(self) -> str:
        """An aligned summary for the user."""
        width = max(len(output.name) for output in self.outputs)
        lines = [
            f"{output.name:<{width}} | {list(output.shape)} | largest difference {output.max_abs_difference:.3g}"
            + (f" at {list(output.at)}: {output.original:.6g}, ported {output.ported:.6g}" if output.at else "")
            for output in self.outputs
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Returns the value of ``parity`` in ledger.json; a difference that is not finite is null."""
        outputs = [
            {name: value if not isinstance(value, float) else _finite(value) for name, value in asdict(output).items()}
            for output in self.outputs
        ]
        return {
            "max_abs_difference": _finite(self.max_abs_difference),
            "outputs": outputs,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "notes": list(self.notes),
        }


def parse_outputs(text: str) -> list[Compared]:
    """Parses ``OP[:N] [= KEY] [| TRANSFORM]...`` separated by commas: ``Reshape_4=cls, boxes:0 | squeeze(1, 2)``.

    Raises GraphError if the syntax or a transform is not valid.
    """
    found = []
    for item in filter(None, (item.strip() for item in re.split(r",(?![^(]*\))", text))):
        head, *steps = (part.strip() for part in item.split("|"))
        name, _, key = (part.strip() for part in head.partition("="))
        if not name:
            raise GraphError(f"outputs={item}: expected OP, OP=KEY or OP | TRANSFORM")
        try:
            found.append(Compared(name, key or None, tuple(map(transforms.parse_transform, steps))))
        except ValueError as error:
            raise GraphError(f"outputs={item}: {error}") from None
    return found


def make_feeds(
    inputs: Sequence[Input],
    *,
    examples: int = 4,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    below: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Draws seeded values for the inputs of a graph: standard normal, or 0 and 1 for integers.

    Raises GraphError if the rank or another length is unknown, or values of a dtype cannot be drawn.

    Args:
        examples: the first length where it is unknown.
        shapes: tensor -> shape, where other lengths are unknown.
        below: tensor -> the exclusive upper bound of its integers, instead of 2 (an index that nearly every table has).
    """
    generator = np.random.default_rng(seed)
    given = {tensor_name(name): tuple(shape) for name, shape in (shapes or {}).items()}
    limits = {tensor_name(name): limit for name, limit in (below or {}).items()}
    feeds = {}
    for each in inputs:
        shape = given.get(each.name) or _closed(each, examples)
        if math.prod(shape) > _MOST_ELEMENTS:
            raise GraphError(
                f"inputs={each.name}: its shape {list(shape)} is too large to draw; give the values in an .npz file"
            )
        if each.dtype.is_floating:
            value: Any = generator.standard_normal(shape)
        elif each.dtype.is_integer:
            value = generator.integers(0, limits.get(each.name, 2), shape)
        else:
            hint = f"fix it with inputs={each.name}=False" if each.dtype == tf.bool else "give it in an .npz file"
            raise GraphError(f"inputs={each.name}: no value can be drawn for dtype {each.dtype.name}; {hint}")
        feeds[each.name] = np.asarray(value).astype(each.dtype.as_numpy_dtype)
    return feeds


def feeds_by_name(inputs: Sequence[Input], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Assigns values, such as those of an .npz file, to the inputs of a graph; ``scope/op`` means ``scope/op:0``.

    Raises GraphError if a value is missing, or a name is not that of an input.
    """
    found = {tensor_name(name): array for name, array in arrays.items()}
    names = [each.name for each in inputs]
    for name in names:
        if name not in found:
            raise GraphError(f"inputs={name}: its value is missing{nearest(name, list(found))}")
    for name in found:
        if name not in names:
            raise GraphError(f"inputs={name} is not an input of the graph; expected {', '.join(names) or 'no inputs'}")
    return {name: found[name] for name in names}


def compare_outputs(
    original: Runnable, model: Any, *, feeds: Mapping[str, np.ndarray], outputs: Sequence[Compared] | None = None
) -> Parity:
    """Runs both on the same input (tensor of the old graph -> value) and compares their outputs, or those named.

    The model is a tf.Module, Keras model or other callable. It takes the inputs in the order of the graph (a Keras
    model takes one tensor or a list) and returns a tensor, a list or a mapping. It is run in inference mode. None for
    ``outputs`` pairs them in order. Raises GraphError if the number of outputs or their shapes differ, the original's
    values are not finite, or either fails. TensorFlow's graph optimizer is off for both, as it rounds differently.
    """
    extracted = original.extracted
    wanted = [Compared(name) for name in extracted.outputs] if outputs is None else list(outputs)
    theirs = original(feeds)
    ours = _outputs(_run(model, [feeds[each.name] for each in extracted.inputs]), model)
    pairs = _paired(wanted, theirs, ours, extracted)
    found = tuple(_difference(each, key, theirs[tensor_name(each.name)], ours[key]) for each, key in pairs)
    notes = []
    if extracted.random:
        drawn = join_some(extracted.random, most=3)
        notes.append(f"the old graph draws random numbers ({drawn}), so no two runs are equal")
    shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
    return Parity(found, shapes, tuple(notes))


def _closed(each: Input, examples: int) -> tuple[int, ...]:
    if each.shape is None or None in each.shape[1:]:
        known = "of any rank" if each.shape is None else "[" + ",".join(str(n or "?") for n in each.shape) + "]"
        lengths = [
            "None",
            *("32" if length is None else str(length) for length in (each.shape or (0, None, None, 3))[1:]),
        ]
        raise GraphError(
            f"inputs={each.name}: its shape is {known} in the graph; state it, such as "
            f"inputs={each.name.removesuffix(':0')}[{','.join(lengths)}], or give the values in an .npz file"
        )
    return tuple(examples if length is None else length for length in each.shape)


def _run(model: Any, values: Sequence[np.ndarray]) -> Any:
    tensors = [tf.constant(value) for value in values]
    arguments: Sequence[Any] = tensors if not is_keras(model) or len(tensors) == 1 else [tensors]
    switch = {"training": False} if is_keras(model) or "training" in accepted_keywords(model) else {}
    try:
        with tensorflow_private.graph_optimizer_off():
            return model(*arguments, **switch)
    except Exception as error:  # the user's own code
        shapes = ", ".join(str(list(value.shape)) for value in values)
        text = " ".join(str(error).split())[:300]
        raise GraphError(f"the new model, called on {shapes}, raised {type(error).__name__}: {text}") from None


def _outputs(result: Any, model: Any) -> dict[str, np.ndarray]:
    """Returns the new model's outputs by name, or else by number."""
    if isinstance(result, Mapping):
        return {str(name): np.asarray(value) for name, value in result.items()}
    values = list(result) if isinstance(result, (list, tuple)) else [result]
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(values) or len(set(names)) != len(names):
        names = [str(number) for number in range(len(values))]
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _paired(
    wanted: Sequence[Compared], theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], extracted: Extracted
) -> list[tuple[Compared, str]]:
    names = list(ours)
    if any(each.key is None for each in wanted) and len(wanted) != len(names):
        raise GraphError(
            f"outputs=: {extracted.path} has {len(wanted)} ({_shapes(theirs)}), but the new model has {len(names)} "
            f"({_shapes(ours)}); pair them with OP=KEY"
        )
    pairs = []
    for number, each in enumerate(wanted):
        if tensor_name(each.name) not in theirs:
            raise GraphError(f"outputs={each.name}: this was not extracted from {extracted.path}")
        key = names[number] if each.key is None else each.key
        if key not in ours and key.isdigit() and int(key) < len(names):
            key = names[int(key)]
        if key not in ours:
            raise GraphError(
                f"outputs={each.name}={key}: the new model has no such output; it has {', '.join(names)}{nearest(key, names)}"
            )
        pairs.append((each, key))
    return pairs


def _difference(wanted: Compared, key: str, theirs: np.ndarray, ours: np.ndarray) -> Difference:
    name = tensor_name(wanted.name)
    for array, whose in ((theirs, "the old graph"), (ours, "the new model")):
        check_numbers(name, array, whose=whose)
    target = Target(tuple(ours.shape))
    result, _, problem = transforms.infer_spec([Spec(theirs.shape, theirs.dtype)], wanted.transforms, target)
    if result is None:
        raise GraphError(f"outputs={name}: {problem}")
    theirs = transforms.apply_transforms([theirs], wanted.transforms, target)
    if theirs.shape != ours.shape:
        raise GraphError(
            f"outputs={name}: the shape is {list(theirs.shape)} in the old graph, {list(ours.shape)} in the new model ({key}); "
            "pair another output with OP=KEY, or change the old layout with OP | reshape(...) or transpose(...)"
        )
    old, new = theirs.astype(np.float64), ours.astype(np.float64)
    if not np.isfinite(old).all():
        raise GraphError(f"outputs={name}: the old graph's values are not finite on this input; try another")
    if not old.size:
        raise GraphError(f"outputs={name}: both outputs are empty, of shape {list(old.shape)}; try another input")
    off = np.abs(old - new)
    off[~np.isfinite(off)] = np.inf
    at = tuple(int(number) for number in np.unravel_index(int(off.argmax()), off.shape))
    scale = float(np.abs(old).max())
    return Difference(name, key, tuple(ours.shape), float(off[at]), at, float(old[at]), float(new[at]), scale)


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
