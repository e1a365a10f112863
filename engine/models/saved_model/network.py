"""The network of a SavedModel as a ``tf.Module``, whose variables are our own and have paths."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine import tensorflow_private
from engine.errors import GraphError
from engine.graphs import draws as drawing
from engine.graphs import library_names, safety
from engine.graphs.dataflow import dependents
from engine.graphs.draws import Draw
from engine.graphs.widening import widen_graph
from engine.models.saved_model.holding import numbers_of
from engine.models.saved_model.holding_check import check_held
from engine.models.saved_model.trunk import Trunk
from engine.models.saved_model.values import Program
from engine.text import join_some

_SCALES = re.compile(r"gamma|scale|beta|offset|bias|(moving|running)_.*")
_HEAD_ONLY = "the head alone can train (--train=@head)"


class SavedScope(tf.Module):
    """The variables of one scope. A layer with statistics has a switch for its training mode."""

    def __init__(self, statistics: Sequence[str] = ()) -> None:
        super().__init__()
        self.statistics = tuple(statistics)
        if statistics:
            self.update_statistics = True


class SavedNorm(SavedScope):
    """A scope of a scale and an offset for each channel, as normalisation layers have."""


class SavedBatchNorm(SavedNorm):
    """A normalisation layer whose statistics the trace for training moves."""


@dataclass(frozen=True, eq=False)
class _Runnable:
    """A program in the form in which it is imported, and where it draws random numbers."""

    program: Program
    definition: Any
    draws: tuple[Draw, ...]


class SavedNetwork(tf.Module):
    """The network of a SavedModel: ``network(images, training=, seeds=)`` gives its features, or what a head makes of them.

    In training, the layers whose ``update_statistics`` is set run in training mode and move their statistics, all others in
    inference mode; ``seeds``, int32 [B, 2], decide what is dropped.

    Args:
        trunk: the programs.
        values: the number of a variable -> its value.
        paths: the number of a variable -> its path.
        image_shape: the shape of an example.
        dtype: the dtype of what is float32 in the file: tf.float32 or tf.float64.

    Attributes:
        layer_order: the scopes of the variables in the order in which they are used first; ``@layers`` means these.
    """

    _TF_MODULE_IGNORED_PROPERTIES = frozenset(
        (
            *("_trunk", "_held", "_layers", "_runnables", "_functions", "_dtype", "_head", "layer_order", "_shape"),
            *("_verified", *tf.Module._TF_MODULE_IGNORED_PROPERTIES),
        )
    )

    def __init__(
        self,
        trunk: Trunk,
        values: Mapping[int, np.ndarray],
        paths: Mapping[int, str],
        *,
        image_shape: Sequence[int],
        dtype: Any = tf.float32,
    ) -> None:
        super().__init__()
        self._trunk, self._dtype, self._shape = trunk, dtype, tuple(image_shape)
        self._held: dict[int, tf.Variable] = {}
        self._layers: dict[str, SavedScope] = {}  # the path of a layer as the trunk knows it -> its scope
        self._runnables: dict[tuple[Any, ...], _Runnable] = {}
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._head: Any = None
        self._verified = False
        scopes = _group(trunk, paths)
        for variable in trunk.variables:
            scope, name = scopes[variable.number]
            if scope not in self.__dict__:
                inside = [scopes[number][1] for number in scopes if scopes[number][0] == scope]
                layer = next((each for each in trunk.layers if scopes[each.statistics[0]][0] == scope), None)
                moving = () if layer is None else tuple(scopes[number][1] for number in layer.statistics)
                self.__dict__[scope] = made = _kind_of(inside, bool(moving))(moving)
                if layer is not None:
                    self._layers[layer.path] = made
            value = tf.cast(values[variable.number], self._widened(variable.dtype))
            path = paths[variable.number]
            weight = variable.weight and variable.number not in numbers_of(trunk.layers)
            held = tf.Variable(value, trainable=weight, name=re.sub(r"[^\w./-]", "_", path), dtype=value.dtype)
            self.__dict__[scope].__dict__[name] = self._held[variable.number] = held
        self.layer_order = tuple(dict.fromkeys(scopes[each.number][0] for each in trunk.variables))

    @property
    def trunk(self) -> Trunk:
        """The programs of the network."""
        return self._trunk

    def add_head(self, head: tf.Module) -> None:
        """Puts a head on the features: ``head(features, training=, seeds=)``. Its variables lie under head/."""
        self.__dict__["head"] = self._head = head

    @property
    def has_new_head(self) -> bool:
        """Whether a head was put on the features, which the file does not have."""
        return self._head is not None

    def notes(self) -> list[str]:
        """What a user should know of the random numbers of the network in training, a sentence each."""
        if not self._trunk.draws:
            return []
        draws = self._prepare(True, tuple(self._layers)).draws
        shared = [draw.tensor for draw in draws if draw.shape is None]
        if not shared:
            return []
        return [
            f"draws numbers that do not belong to examples, so they depend on how a step is split: {join_some(shared)}"
        ]

    def _widened(self, dtype: tf.DType) -> Any:
        return self._dtype if dtype == tf.float32 else dtype

    def __call__(self, images: Any, training: bool = False, seeds: Any = None) -> Any:
        features = self._compute(images, training=training, seeds=seeds)
        return features if self._head is None else self._head(features, training=training, seeds=seeds)

    def _compute(self, images: Any, *, training: bool, seeds: Any) -> Any:
        moving = tuple(path for path, scope in self._layers.items() if training and scope.update_statistics)
        runnable = self._prepare(training, moving)
        images = self._as_input(tf.convert_to_tensor(images))
        if runnable.draws and training and seeds is None:
            raise GraphError(f"seeds=None: {self._trunk.where} draws random numbers in training; expected int32 [B, 2]")
        if tf.executing_eagerly():
            key = (training, moving)
            if key not in self._functions:
                run = functools.partial(self._run, runnable)
                self._functions[key] = tf.function(run, autograph=False, reduce_retracing=True)
            return self._functions[key](seeds, images)
        return self._run(runnable, seeds, images)

    def _prepare(self, training: bool, moving: tuple[str, ...]) -> _Runnable:
        key = (training, moving)
        if key not in self._runnables:
            program = self._trunk.program(training=training, moving=moving)
            holds = len(moving) < len(self._trunk.layers) and (moving or self._trunk.draws)
            if training and holds and not self._verified:
                self._verify()
            self._runnables[key] = self._make_runnable(program)
        return self._runnables[key]

    def _make_runnable(self, program: Program) -> _Runnable:
        where = self._trunk.where
        given = {program.data, *program.reads.values()}
        definition = tf.compat.v1.GraphDef(versions=program.definition.versions, library=program.definition.library)
        definition.node.extend(node for node in program.definition.node if node.name not in given)
        if self._dtype == tf.float64:
            widen_graph(definition, where=where)
        draws: tuple[Draw, ...] = ()
        if drawing.find_random(definition):
            draws = drawing.find_draws(definition, self._specs(program), f"{program.data}:0", where=where)
        library_names.make_names_unique(definition)
        tensorflow_private.register_functions(definition.library)
        return _Runnable(program, definition, draws)

    def _verify(self) -> None:
        """Checks once that layers that are held compute as in inference, before the first program with such layers is used."""
        held = self._make_runnable(self._trunk.held())
        inference = self._make_runnable(self._trunk.program(training=False))
        with tf.init_scope():
            check_held(
                functools.partial(self._evaluate, held),
                None if held.draws else functools.partial(self._evaluate, inference),
                {number: held for number, held in self._held.items() if number in numbers_of(self._trunk.layers)},
                tf.TensorSpec([None, *self._shape], self._widened(self._trunk.data.dtype)),
                where=self._trunk.where,
            )
        self._verified = True

    def _evaluate(self, runnable: _Runnable, images: Any) -> Any:
        """The features for images, with all random numbers close to 1, so that nothing is dropped."""
        key = ("evaluate", id(runnable))
        if key not in self._functions:
            run = functools.partial(self._run, runnable, None, hold=1.0 - 2.0**-10)
            self._functions[key] = tf.function(run, autograph=False, reduce_retracing=True)
        return self._functions[key](tf.cast(images, self._widened(self._trunk.data.dtype)))

    def _specs(self, program: Program) -> dict[str, tf.TensorSpec]:
        """What an imported program reads: tensor -> its dtype and shape."""
        data = tf.TensorSpec([None, *self._shape], self._widened(self._trunk.data.dtype))
        values = {f"{name}:0": self._held[number] for number, name in program.reads.items()}
        read = {source for node in program.definition.node for source in _tensors(node)}
        specs = {name: tf.TensorSpec(held.shape, held.dtype) for name, held in values.items() if name in read}
        return specs | {f"{program.data}:0": data}

    def _as_input(self, images: Any) -> Any:
        """The images in the dtype that the file takes."""
        dtype = self._widened(self._trunk.data.dtype)
        if dtype.is_integer and images.dtype.is_floating:
            images = tf.round(images)
        return tf.cast(images, dtype)

    def _run(self, runnable: _Runnable, seeds: Any, images: Any, *, hold: float | None = None) -> Any:
        """Imports a program into the graph that is being traced, and tells the tapes its gradient."""
        program = runnable.program
        known = {f"{program.data}:0": images}
        sources = [images] if images.dtype.is_floating else []
        for number, name in program.reads.items():
            known[f"{name}:0"] = value = tf.convert_to_tensor(self._held[number])
            sources += [value] if value.dtype.is_floating else []
        if hold is None and seeds is not None:
            known |= drawing.draw(runnable.draws, seeds)
        else:
            known |= drawing.hold(runnable.draws, images, 0.0 if hold is None else hold)
        read = {source for node in runnable.definition.node for source in _tensors(node)}
        wanted = [program.output, *program.writes.values()]
        missing = [name for name in dict.fromkeys(wanted) if name not in known]
        fed = {name: tensor for name, tensor in known.items() if name in read}
        before = set(tf.compat.v1.get_default_graph().get_operations())
        try:
            made = tf.graph_util.import_graph_def(runnable.definition, fed, missing, name="saved")
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            shape = images.shape.as_list() if images.shape.rank is not None else "unknown"
            text = " ".join(str(error).split())[:300]
            raise GraphError(f"{self._trunk.where}: on data of shape {shape} its graph fails: {text}") from None
        here = tf.compat.v1.get_default_graph()
        safety.check_sizes(here, where=self._trunk.where)
        found = known | dict(zip(missing, made, strict=True))
        custom = [op for op in here.get_operations() if op not in before and _local(op.name) in program.custom]
        self._record(found[program.output], sources, custom)
        for number, name in program.writes.items():
            held, value = self._held[number], found[name]
            if not held.shape.is_compatible_with(value.shape):
                raise GraphError(
                    f"{self._trunk.where}: {name} would give the variable {held.name.partition(':')[0]} of shape "
                    f"{held.shape} a value of shape {value.shape}; the file is damaged"
                )
            held.assign(value)
        return tf.identity(found[program.output])

    def _record(self, output: Any, sources: Sequence[Any], custom: Sequence[Any]) -> None:
        sources = [tensor for tensor in sources if tensorflow_private.is_recorded(tensor)]
        if not sources:
            return
        where = f"{self._trunk.where}, {self._trunk.chosen.inference.source}"

        def backward(*gradients: Any) -> list[Any]:
            reached = dependents(output.graph, sources)
            if wrong := [op for op in custom if op in reached]:
                raise GraphError(
                    f"{where}: {_local(wrong[0].name)} has a gradient of its own, which is not read from the file, so nothing "
                    f"below it can train; {_HEAD_ONLY}, or what lies above it"
                )
            try:
                found = tf.gradients([output], sources, list(gradients))
            except LookupError as error:
                raise GraphError(f"{where}: no gradient passes through it: {error}; {_HEAD_ONLY}") from None
            if all(each is None for each in found):
                raise GraphError(f"{where}: no gradient reaches its variables, so they cannot train; {_HEAD_ONLY}")
            return [None if each is None else tf.convert_to_tensor(each) for each in found]

        tensorflow_private.record_gradient([output], sources, backward)


def _local(name: str) -> str:
    """The name of an imported operation in the file's graph."""
    return name.partition("/")[2]


def _tensors(node: Any) -> list[str]:
    """The tensors that a node reads, by their full names."""
    data = [source for source in node.input if not source.startswith("^")]
    return [source if re.search(r":\d+$", source) else f"{source}:0" for source in data]


def _kind_of(names: Sequence[str], moves: bool) -> type[SavedScope]:
    """The kind of a scope by the names of its variables."""
    if any(re.fullmatch(r"(moving|running)_.*", name) for name in names) and moves:
        return SavedBatchNorm
    is_norm = all(_SCALES.fullmatch(name) for name in names) and any(name in ("gamma", "scale") for name in names)
    return SavedNorm if is_norm else SavedScope


def _group(trunk: Trunk, paths: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """The scope and the name in it of each variable: statistics lie in the scope of their layer."""
    found = {}
    layers = {number: layer for layer in trunk.layers for number in layer.statistics}
    for variable in trunk.variables:
        path = paths[variable.number]
        scope = path.rpartition("/")[0]
        if (layer := layers.get(variable.number)) is not None:
            scope = path[: len(path) - len(trunk.paths[variable.number]) + len(layer.path)]
        found[variable.number] = scope, path[len(scope) + 1 :] if scope else path
    return found
