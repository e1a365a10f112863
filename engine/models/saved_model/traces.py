"""Finds the functions of a SavedModel that can be trunks, and among their traces those for training and for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.models.saved_model.reading import SavedFile
from engine.models.saved_model.structures import Other, Spec, argument_names, flatten
from engine.models.spec import ModelSpecError
from engine.text import join_some, nearest

_MODES = frozenset(["training", "is_training", "train"])  # arguments that say whether the network trains
_CALLS = ("__call__", "call_and_return_conditional_losses", "call_and_return_all_conditional_losses", "serve")
_SERVING = "serving_default"
_DEFAULT = "default"  # the output that modules of TensorFlow Hub call so


@dataclass(frozen=True)
class Output:
    """A tensor that a trace returns: its name in the structure, and its place among all of them."""

    name: str
    place: int
    dtype: tf.DType
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, eq=False)
class Trace:
    """A function of the library that takes images and returns features.

    Attributes:
        function, source: its name in the library, and the name by which the root object or a signature has it.
        data: the place of the images among its arguments, and what they are.
        switches: the places of the boolean arguments that say whether it trains.
        training: whether it was traced for training; None if a switch decides, or nothing says it.
        outputs: the tensors of numbers that it returns.
        captures: the objects that it reads, by number, which come after the other arguments.
        usual: how many of its plain arguments have the values that they have by default.
    """

    function: str
    source: str
    data: tuple[int, Spec]
    switches: tuple[int, ...]
    training: bool | None
    outputs: tuple[Output, ...]
    captures: tuple[int, ...]
    usual: int

    def output(self, name: str) -> Output:
        """The output of this name."""
        return next(each for each in self.outputs if each.name == name)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The traces of a trunk, and the output that its features are.

    ``training`` is None where the file has no trace for training; ``output`` is a name that both traces have.
    """

    inference: Trace
    training: Trace | None
    output: str

    @property
    def features(self) -> Output:
        """What the trace for inference returns as features."""
        return self.inference.output(self.output)


class _UnfitError(Exception):
    """Why a trace cannot be a trunk."""


def list_functions(file: SavedFile) -> dict[str, tuple[list[str], Any]]:
    """The functions of the root object and the signatures: name -> the concrete functions and the FunctionSpec."""
    found: dict[str, tuple[list[str], Any]] = {}
    root = file.children(0)
    signatures = root.pop("signatures", None)
    places = [*root.items(), *(file.children(signatures).items() if signatures is not None else ())]
    for name, number in places:
        node = file.nodes[number]
        kind = node.WhichOneof("kind")
        if kind == "function":
            found.setdefault(name, (list(node.function.concrete_functions), node.function.function_spec))
        elif kind == "bare_concrete_function":
            bare = node.bare_concrete_function
            found.setdefault(name, ([bare.concrete_function_name], bare.function_spec))
    return {name: pair for name, pair in found.items() if pair[0]}


def choose_traces(
    file: SavedFile, *, signature: str | None, output: str | None, image_shape: Sequence[int], spec: str
) -> Chosen:
    """The traces of a function for images of this shape, and one of its outputs.

    Without ``signature`` it is the first of ``__call__`` (or what Keras calls it), ``serve``, ``serving_default`` and the only
    signature that takes such images. Without ``output``, it is the only one, or the one called "default". Raises
    ModelSpecError, which lists what there is, if there is no such signature or output, or none fits.
    """
    known = list_functions(file)
    if signature is not None and signature not in known:
        raise ModelSpecError(
            f"model={spec!r}: signature={signature}: {file.folder} has no function of this name; it has "
            f"{join_some(list(known), most=12) or 'none'}{nearest(signature, list(known))}"
        )
    problems: list[str] = []
    for name in [signature] if signature is not None else _order(known):
        fitting = []
        for trace in _find_traces(file, name, known[name], problems):
            if (wrong := _misfit(trace, image_shape)) is None:
                fitting.append(trace)
            else:
                problems.append(f"{name}: {wrong}")
        if fitting:
            return _choose(file, name, fitting, output, spec)
    listed = "; ".join(dict.fromkeys(problems)) or "it has no function with a trace"
    raise ModelSpecError(f"model={spec!r}: no function of {file.folder} can be a trunk for these data: {listed}")


def native_size(file: SavedFile, signature: str | None) -> tuple[int, int] | None:
    """The (height, width) of the images that a SavedModel is made for; None for any size."""
    known = list_functions(file)
    for name in [signature] if signature in known else _order(known):
        for trace in _find_traces(file, name, known[name], []):
            shape = trace.data[1].shape or ()
            if len(shape) == 4 and shape[1] and shape[2]:
                return shape[1], shape[2]
    return None


def _order(known: dict[str, Any]) -> list[str]:
    """The names of functions in the order in which they are tried."""
    usual = [name for name in (*_CALLS, _SERVING) if name in known]
    return usual or list(known)[:1] if len(known) < 2 else usual or list(known)


def _find_traces(file: SavedFile, name: str, function: tuple[list[str], Any], problems: list[str]) -> Iterator[Trace]:
    """The traces of a function that take one tensor and return numbers; why others do not is added to ``problems``."""
    concrete, spec = function
    names = argument_names(spec)
    leaves = dict(flatten(spec.fullargspec))
    defaults = [leaf for path, leaf in leaves.items() if path[:1] == ("defaults",)]
    usual = dict(zip(names[len(names) - len(defaults) :], defaults, strict=False))
    for each in concrete:
        try:
            yield _read_trace(file, each, name, names, usual)
        except _UnfitError as reason:
            problems.append(f"{name}: {reason}")


def _read_trace(file: SavedFile, function: str, source: str, names: list[str], usual: dict[str, Any]) -> Trace:
    if function not in file.concrete or function not in file.functions:
        raise file.damaged(f"the function {function} is not in it")
    concrete, definition = file.concrete[function], file.functions[function]
    data: list[tuple[int, Spec]] = []
    switches: list[int] = []
    training, alike, place = None, 0, 0
    for path, leaf in flatten(concrete.canonicalized_input_signature):
        name = str(path[1]) if path[0] == 1 else names[int(path[1])] if int(path[1]) < len(names) else ""
        if isinstance(leaf, Other):
            raise _UnfitError(f"it takes {leaf.what}")
        if not isinstance(leaf, Spec):
            if name in _MODES and isinstance(leaf, bool):
                training = leaf
            else:
                alike += name in usual and usual[name] == leaf
            continue
        if leaf.dtype == tf.bool and leaf.shape == ():
            if name not in _MODES and leaf.name not in _MODES:
                raise _UnfitError(f"it takes the boolean {name or leaf.name}")
            switches.append(place)
        else:
            data.append((place, dataclasses.replace(leaf, name=leaf.name or name)))
        place += 1
    if len(data) != 1:
        listed = join_some([each.name for _, each in data])
        raise _UnfitError(f"it takes {len(data)} tensors{f' ({listed})' * bool(listed)}; a trunk takes one")
    leaves = list(flatten(concrete.output_signature))
    if others := [leaf.what for _, leaf in leaves if isinstance(leaf, Other)]:
        raise _UnfitError(f"it returns {others[0]}")
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Spec)]
    captures = tuple(concrete.bound_inputs)
    if (place + len(captures), len(tensors)) != (
        len(definition.signature.input_arg),
        len(definition.signature.output_arg),
    ):
        raise file.damaged(f"the function {function} has other arguments or results than its signature says")
    outputs = [Output("/".join(map(str, p)), n, leaf.dtype, leaf.shape) for n, (p, leaf) in enumerate(tensors)]
    outputs = [each for each in outputs if each.dtype.is_floating and each.shape != ()]
    if not outputs:
        raise _UnfitError("it returns no tensor of numbers with an axis for the batch")
    return Trace(function, source, data[0], tuple(switches), training, tuple(outputs), captures, alike)


def _misfit(trace: Trace, image_shape: Sequence[int]) -> str | None:
    """Why a trace does not take such images; None if it does."""
    spec = trace.data[1]
    if not (spec.dtype.is_floating or spec.dtype.is_integer):
        return f"its input {spec.name} is of {spec.dtype.name}, not of numbers"
    if spec.shape is None or tf.TensorShape(spec.shape).is_compatible_with([None, *image_shape]):
        return None
    shown = f"[{', '.join('?' if n is None else str(n) for n in spec.shape)}]"
    if len(spec.shape) == len(image_shape) + 1 and spec.shape[0] is not None:
        return f"its input {spec.name} is {shown}: it was traced for batches of {spec.shape[0]} alone"
    text = f"its input {spec.name} is {shown}, and these data are {['?', *image_shape]}".replace("'", "")
    if len(spec.shape) == 4 and len(image_shape) == 3 and spec.shape[3] in (None, image_shape[2]):
        size = [given if n is None else n for n, given in zip(spec.shape[1:3], image_shape, strict=False)]
        text += f"; --image_size={'x'.join(map(str, size))} resizes images"
    return text


def _choose(file: SavedFile, name: str, fitting: list[Trace], output: str | None, spec: str) -> Chosen:
    def best(modes: Sequence[bool | None]) -> Trace | None:
        for mode in modes:
            same = [each for each in fitting if each.training is mode and (mode is not True or not each.switches)]
            if same:
                return max(same, key=lambda each: (each.usual, _known_lengths(each)))
        return None

    inference = best([False, None])
    if inference is None:
        raise ModelSpecError(
            f"model={spec!r}: {name} of {file.folder} has only traces for training, so nothing could be evaluated; signature= "
            f"names another function: {join_some([each for each in list_functions(file) if each != name], most=12) or 'it has none'}"
        )
    training = inference if inference.switches else best([True])
    chosen = _choose_output(inference, output, spec)
    if training is not None and chosen not in [each.name for each in training.outputs]:
        training = None
    return Chosen(inference, training, chosen)


def _known_lengths(trace: Trace) -> int:
    return sum(length is not None for length in trace.data[1].shape or ())


def _choose_output(trace: Trace, output: str | None, spec: str) -> str:
    names = [each.name for each in trace.outputs]
    if output is None:
        inner = [name for name in names if name.rpartition("/")[2] == _DEFAULT]
        if len(names) == 1 or len(inner) == 1:
            return (inner or names)[0]
        listed = join_some([f"{each.name} {shown_shape(each.shape)}" for each in trace.outputs], most=12)
        raise ModelSpecError(
            f"model={spec!r}: {trace.source} returns {len(names)} tensors; output=NAME says on which the head stands: {listed}"
        )
    found = [name for name in names if name == output] or [n for n in names if n.rpartition("/")[2] == output]
    if len(found) != 1:
        listed = join_some([name or "one without a name (leave output= out)" for name in names], most=12)
        raise ModelSpecError(
            f"model={spec!r}: output={output}: {trace.source} returns {'no' if not found else 'several'} such tensor"
            f"{'s' * bool(found)}; it returns {listed}{nearest(output, names)}"
        )
    return found[0]


def shown_shape(shape: Sequence[int | None] | None) -> str:
    """A shape for messages, with ``?`` for unknown lengths."""
    return "of unknown rank" if shape is None else f"[{', '.join('?' if n is None else str(n) for n in shape)}]"
