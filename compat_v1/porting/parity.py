"""Proof that a ported model is its original: both run on the same input, and the largest difference is told."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.endpoints import tensor_name
from compat_v1.graphs.extract import Extracted, Input
from compat_v1.graphs.original import Original
from engine.porting.rules import transforms
from engine.porting.rules.transforms import Spec, Target, Transform
from engine.selection.variables import is_keras
from engine.text import nearest
from engine.training.losses import keywords

_MOST_ELEMENTS = 1 << 28  # of an input that is drawn
BOUND = 1e-5  # contract E6: absolute, on outputs of unit scale


@dataclass(frozen=True)
class Compared:
    """One output of the old graph and what it is compared with.

    Attributes:
        name: tensor of the old graph.
        key: of the new model's outputs: a name or a number; None: the one in the same place.
        transforms: what brings the old output into the new one's layout.
    """

    name: str
    key: str | None = None
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class Difference:
    """How far one output is off.

    Attributes:
        name: tensor of the old graph.
        key: of the new model's output.
        shape: of both.
        max_abs_difference: infinite where the new model gives no finite value.
        at: where it is; () for a scalar or an empty output.
        original, ported: the two values there.
        scale: largest absolute value of the original.
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
    """What the comparison found.

    Attributes:
        outputs: one entry an output.
        inputs: tensor -> shape of what was fed.
        notes: what the reader should know, such as random operations.
    """

    outputs: tuple[Difference, ...]
    inputs: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def max_abs_difference(self) -> float:
        return max(output.max_abs_difference for output in self.outputs)

    def holds(self, bound: float = BOUND) -> bool:
        """Whether every output is within the bound, which grows with outputs of more than unit scale."""
        return all(output.max_abs_difference <= bound * max(1.0, output.scale) for output in self.outputs)

    def summary(self) -> str:
        """Aligned lines for people."""
        width = max(len(output.name) for output in self.outputs)
        lines = [
            f"{output.name:<{width}} | {list(output.shape)} | largest difference {output.max_abs_difference:.3g}"
            + (f" at {list(output.at)}: {output.original:.6g}, ported {output.ported:.6g}" if output.at else "")
            for output in self.outputs
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """The value of ``parity`` in ledger.json; a difference that is not finite is null."""
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
    """``OP[:N] [= KEY] [| TRANSFORM]...``, with commas between: ``Reshape_4=cls, boxes:0 | squeeze(1, 2)``.

    Raises:
        GraphError: it is written otherwise, or a transform is unknown.
    """
    found = []
    for item in filter(None, (item.strip() for item in re.split(r",(?![^(]*\))", text))):
        head, *steps = (part.strip() for part in item.split("|"))
        name, _, key = (part.strip() for part in head.partition("="))
        if not name:
            raise GraphError(f"outputs={item}: it is written OP, OP=KEY or OP | TRANSFORM")
        try:
            found.append(Compared(name, key or None, tuple(map(transforms.parse, steps))))
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
    """Seeded values for a graph's inputs: standard normal; whole numbers are 0 or 1, which nearly every table has.

    Args:
        inputs: of the graph.
        examples: the first length, where it is open; an open rank is one of that length.
        seed: of the values.
        shapes: tensor -> shape, where further lengths are open.
        below: tensor -> the number that its whole numbers stay below.

    Raises:
        GraphError: a length is open, or a type cannot be drawn.
    """
    generator = np.random.default_rng(seed)
    given = {tensor_name(name): tuple(shape) for name, shape in (shapes or {}).items()}
    limits = {tensor_name(name): limit for name, limit in (below or {}).items()}
    feeds = {}
    for each in inputs:
        shape = given.get(each.name) or _closed(each, examples)
        if math.prod(shape) > _MOST_ELEMENTS:
            raise GraphError(f"inputs={each.name}: its shape is {list(shape)}; give the values in an .npz file")
        if each.dtype.is_floating:
            value: Any = generator.standard_normal(shape)
        elif each.dtype.is_integer:
            value = generator.integers(0, limits.get(each.name, 2), shape)
        else:
            hint = f"inputs={each.name}=False gives it one" if each.dtype == tf.bool else "give it in an .npz file"
            raise GraphError(f"inputs={each.name}: no value is drawn for {each.dtype.name}; {hint}")
        feeds[each.name] = np.asarray(value).astype(each.dtype.as_numpy_dtype)
    return feeds


def feeds_by_name(inputs: Sequence[Input], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Given values (such as an .npz file's) for a graph's inputs; ``scope/op`` and ``op:0`` are the same.

    Raises:
        GraphError: one is missing, or is for no input.
    """
    found = {tensor_name(name): array for name, array in arrays.items()}
    names = [each.name for each in inputs]
    for name in names:
        if name not in found:
            raise GraphError(f"inputs={name}: no value is given{nearest(name, list(found))}")
    for name in found:
        if name not in names:
            raise GraphError(f"inputs={name}: the graph is not fed that; {', '.join(names) or 'nothing'} is wanted")
    return {name: found[name] for name in names}


def compare(
    original: Original, model: Any, *, feeds: Mapping[str, np.ndarray], outputs: Sequence[Compared] | None = None
) -> Parity:
    """Runs both on the same input.

    Args:
        original: the old graph with its values.
        model: a tf.Module, Keras model or other callable; takes the inputs in the graph's order (a Keras model as one
            tensor or a list) and returns a tensor, a list or a mapping. It is run in inference mode.
        feeds: tensor of the old graph -> value.
        outputs: what is compared with what; None: one by one, in order.

    Raises:
        GraphError: numbers of outputs or shapes differ; the original gives values that are not finite; either fails.
    """
    extracted = original.extracted
    wanted = [Compared(name) for name in extracted.outputs] if outputs is None else list(outputs)
    theirs = original(feeds)
    ours = _outputs(_run(model, [feeds[each.name] for each in extracted.inputs]), model)
    pairs = _paired(wanted, theirs, ours, extracted)
    found = tuple(_difference(each, key, theirs[tensor_name(each.name)], ours[key]) for each, key in pairs)
    notes = []
    if extracted.random:
        notes.append(f"the old graph draws random numbers ({', '.join(extracted.random[:3])}): no two runs are equal")
    shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
    return Parity(found, shapes, tuple(notes))


def _closed(each: Input, examples: int) -> tuple[int, ...]:
    if each.shape is None:
        return (examples,)
    if None in each.shape[1:]:
        shape = ["?" if length is None else length for length in each.shape]
        raise GraphError(f"inputs={each.name}: its shape is {shape}; say it, or give the values in an .npz file")
    return tuple(examples if length is None else length for length in each.shape)


def _run(model: Any, values: Sequence[np.ndarray]) -> Any:
    tensors = [tf.constant(value) for value in values]
    arguments: Sequence[Any] = tensors if not is_keras(model) or len(tensors) == 1 else [tensors]
    switch = {"training": False} if is_keras(model) or "training" in keywords(model) else {}
    try:
        return model(*arguments, **switch)
    except Exception as error:  # the user's own code
        shapes = ", ".join(str(list(value.shape)) for value in values)
        text = " ".join(str(error).split())[:300]
        raise GraphError(f"the new model, called on {shapes}, raised {type(error).__name__}: {text}") from None


def _outputs(result: Any, model: Any) -> dict[str, np.ndarray]:
    """The new model's outputs by name, or else by number."""
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
            f"outputs=: {len(wanted)} of {extracted.path} ({_shapes(theirs)}), {len(names)} of the new model "
            f"({_shapes(ours)}); OP=KEY says which is which"
        )
    pairs = []
    for number, each in enumerate(wanted):
        if tensor_name(each.name) not in theirs:
            raise GraphError(f"outputs={each.name}: it was not asked of {extracted.path}")
        key = names[number] if each.key is None else each.key
        if key not in ours and key.isdigit() and int(key) < len(names):
            key = names[int(key)]
        if key not in ours:
            raise GraphError(f"outputs={each.name}={key}: the new model has {', '.join(names)}{nearest(key, names)}")
        pairs.append((each, key))
    return pairs


def _difference(wanted: Compared, key: str, theirs: np.ndarray, ours: np.ndarray) -> Difference:
    name = tensor_name(wanted.name)
    for array, whose in ((theirs, "the old graph"), (ours, "the new model")):
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise GraphError(f"outputs={name}: {whose} gives {array.dtype.name}; numbers are compared")
    target = Target(tuple(ours.shape))
    result, _, problem = transforms.infer([Spec(theirs.shape, theirs.dtype)], wanted.transforms, target)
    if result is None:
        raise GraphError(f"outputs={name}: {problem}")
    theirs = transforms.run([theirs], wanted.transforms, target)
    if theirs.shape != ours.shape:
        raise GraphError(
            f"outputs={name}: {list(theirs.shape)} in the old graph, {list(ours.shape)} in the new model ({key}); "
            "OP=KEY pairs others, OP | reshape(...) or transpose(...) changes the old one's layout"
        )
    old, new = theirs.astype(np.float64), ours.astype(np.float64)
    if not np.isfinite(old).all():
        raise GraphError(f"outputs={name}: the old graph gives values that are not finite on this input; take another")
    if not old.size:
        raise GraphError(f"outputs={name}: both give {list(old.shape)}, nothing to compare; take another input")
    off = np.abs(old - new)
    off[~np.isfinite(off)] = np.inf
    at = tuple(int(number) for number in np.unravel_index(int(off.argmax()), off.shape))
    scale = float(np.abs(old).max())
    return Difference(name, key, tuple(ours.shape), float(off[at]), at, float(old[at]), float(new[at]), scale)


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
