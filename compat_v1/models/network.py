"""The network of an old graph as a ``tf.Module``, whose variables have their old names as paths."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.call_shapes import set_call_shapes
from compat_v1.graphs.endpoints import producer, tensor_name
from compat_v1.graphs.extract import Extracted, OldVariable
from compat_v1.graphs.functional import import_functional, make_functional, needs_conversion
from compat_v1.models.old_graph import OldGraph, Program
from engine import tensorflow_private
from engine.graphs import draws as drawing
from engine.graphs import safety
from engine.graphs.draws import Draw
from engine.graphs.library_names import make_names_unique
from engine.graphs.widening import widen_graph
from engine.selection.statistics import is_statistic, statistic_layer
from engine.text import join_some


class Scope(tf.Module):
    """The variables of one scope of an old graph. A layer with statistics has a switch for its training mode."""

    def __init__(self, statistics: Sequence[str] = ()) -> None:
        super().__init__()
        self.statistics = tuple(statistics)
        if statistics:
            self.update_statistics = True


@dataclass(frozen=True, eq=False)
class _Runnable:
    """A program in the form in which it is imported, and where it draws random numbers."""

    program: Program
    definition: Any
    draws: tuple[Draw, ...]


class GraphNetwork(tf.Module):
    """The network of an old graph: ``network(images, training=, seeds=)`` gives its output.

    Images are [B, height, width, channels], or whatever the graph is fed with. In training, the layers whose
    ``update_statistics`` is set run in training mode and move their statistics, all others in inference mode; ``seeds``,
    int32 [B, 2], decide what is drawn.

    Args:
        old: the old graph.
        variables: those of its variables that the network has.
        values: node of a variable -> its value.
        dtype: the dtype of what is float32 in the graph: tf.float32 or tf.float64.
    """

    _TF_MODULE_IGNORED_PROPERTIES = frozenset(
        (
            "_old",
            "_variables",
            "_held",
            "_layers",
            "_runnables",
            "_functions",
            "_dtype",
            "_head",
            *tf.Module._TF_MODULE_IGNORED_PROPERTIES,
        )
    )

    def __init__(
        self,
        old: OldGraph,
        variables: Sequence[OldVariable],
        values: Mapping[str, np.ndarray],
        *,
        dtype: Any = tf.float32,
    ) -> None:
        super().__init__()
        self._old = old
        self._variables = tuple(variables)
        self._dtype = dtype
        self._held: dict[str, tf.Variable] = {}
        self._layers: dict[str, Scope] = {}
        self._runnables: dict[tuple[Any, ...], _Runnable] = {}
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._head: Any = None
        moving = {name: layer.path for layer in old.layers for name in layer.updates}
        trainable = old.trainable()
        for variable in variables:
            weight = variable.node not in moving and (trainable is None or variable.node in trainable)
            self._add(variable, values[variable.node], moving.get(variable.node), weight=weight)

    def _add(self, variable: OldVariable, value: np.ndarray, layer: str | None, *, weight: bool) -> None:
        """Makes a variable, in the scope of its layer. One with the name of a statistic that nothing moves is a constant."""
        node = variable.node
        scope = layer
        if scope is None:
            scope = statistic_layer(node) if is_statistic(node) else node.rpartition("/")[0]
        known = self.__dict__
        if scope not in known:
            names = [name for each in self._old.layers if each.path == scope for name in each.updates]
            known[scope] = Scope([_within(scope, name) for name in names])
            if names:
                self._layers[scope] = known[scope]
        dtype = self._widened(variable.dtype)
        weight = weight and dtype.is_floating and not is_statistic(node)
        made = tf.Variable(tf.cast(value, dtype), trainable=weight, name=node, dtype=dtype, shape=value.shape)
        known[scope].__dict__[_within(scope, node)] = self._held[node] = made

    @property
    def old(self) -> OldGraph:
        """The graph that this is the network of."""
        return self._old

    @property
    def old_variables(self) -> tuple[OldVariable, ...]:
        """What the graph says about the variables of the network, those of a new head apart."""
        return self._variables

    def notes(self) -> list[str]:
        """What a user should know of the random numbers of the network in training, a sentence each."""
        every = tuple(self._layers)
        runnable = self._prepare((self._old.output,), True, every, (), None)
        found = []
        if shared := [draw.tensor for draw in runnable.draws if draw.shape is None]:
            found.append(
                f"draws numbers that do not belong to examples, so they depend on how a step is split: {join_some(shared)}"
            )
        if inner := [node.name for node in drawing.find_inner(runnable.definition)]:
            found.append(
                f"draws in a loop or a branch by TensorFlow's own generator ({join_some(inner)}): that depends on how a step is "
                "split, and a resumed run draws other numbers"
            )
        return found

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Assigns values to variables, by the names of their nodes."""
        for node, value in values.items():
            self._held[node].assign(tf.cast(value, self._held[node].dtype))

    def add_head(self, head: tf.Module) -> None:
        """Puts a head on the output: ``head(features, training=, seeds=)``. Its variables lie under head/.

        Raises GraphError if variables of the graph do so already.
        """
        if any(node == "head" or node.startswith("head/") for node in self._held):
            raise GraphError(f"{self._old.where}: it has variables under head/, so no new head can be called so")
        self.__dict__["head"] = self._head = head

    def _widened(self, dtype: tf.DType) -> Any:
        return self._dtype if dtype == tf.float32 else dtype

    def __call__(self, images: Any, training: bool = False, seeds: Any = None) -> Any:
        features = self.compute([self._old.output], images, training=training, seeds=seeds)[0]
        return features if self._head is None else self._head(features, training=training, seeds=seeds)

    def compute(
        self,
        targets: Sequence[str],
        images: Any,
        *,
        training: bool,
        seeds: Any = None,
        given: Mapping[str, Any] | None = None,
        also: Sequence[str] = (),
    ) -> list[Any]:
        """Computes tensors of the graph, which may depend on others that are ``given``.

        The results are those of ``targets``, and then those of ``also``, through which no gradient flows.
        """
        moving = tuple(path for path, scope in self._layers.items() if training and scope.update_statistics)
        every, images = (*targets, *also), tf.convert_to_tensor(images)
        runnable = self._prepare(every, training, moving, tuple(given or {}), images)
        images = self._as_input(runnable, self._old.input, images)
        arguments = [images]
        arguments += [self._as_input(runnable, name, values) for name, values in (given or {}).items()]
        if training and seeds is None and runnable.draws:
            raise GraphError(f"seeds=None: {self._old.where} draws random numbers in training; expected int32 [B, 2]")
        held = None if training else 0.0  # what is drawn in evaluation does not matter
        if tf.executing_eagerly():
            key = (tuple(targets), tuple(also), training, moving, tuple(given or {}))
            if key not in self._functions:
                run = functools.partial(self._run, runnable, targets, also, held=held)
                self._functions[key] = tf.function(run, autograph=False, reduce_retracing=True)
            return list(self._functions[key](seeds, *arguments))
        return self._run(runnable, targets, also, seeds, *arguments, held=held)

    def _prepare(
        self, targets: tuple[str, ...], training: bool, moving: tuple[str, ...], arrays: tuple[str, ...], images: Any
    ) -> _Runnable:
        key = (targets, training, moving, arrays)
        if key not in self._runnables:
            program = self._old.program(targets, training=training, moving=moving, arrays=arrays)
            part = program.part
            definition = type(part.definition)()
            definition.CopyFrom(part.definition)
            if needs_conversion(definition):
                kept = [*part.outputs, *(each.name for each in part.inputs), *part.fixed]
                definition = make_functional(definition, keep=kept, where=self._old.where)
                safety.check_graph(definition, where=self._old.where)
                make_names_unique(definition)
            if self._dtype == tf.float64:
                widen_graph(definition, where=self._old.where)
            draws: tuple[Draw, ...] = ()
            if drawing.find_random(definition):
                draws = drawing.find_draws(
                    definition,
                    self._specs(program, definition),
                    self._old.input,
                    where=self._old.where,
                    set_call_shapes=set_call_shapes,
                )
            self._runnables[key] = _Runnable(program, definition, draws)
            self._fill_tables(part)
            if not training and drawing.find_random(part.definition):
                self._check_not_random(self._runnables[key], targets, images)
        return self._runnables[key]

    def _fill_tables(self, part: Extracted) -> None:
        """Fills the lookup tables of a part, which have names of their own in this process."""
        given, fills = part.tables
        if not fills:
            return
        definition = type(given)()
        definition.CopyFrom(given)
        if self._dtype == tf.float64:
            widen_graph(definition, where=self._old.where)

        def fill() -> None:  # a function runs all that has an effect
            tf.graph_util.import_graph_def(definition, return_elements=list(fills), name="tables")

        with tf.init_scope():
            tf.function(fill, autograph=False)()

    def _check_not_random(self, runnable: _Runnable, targets: Sequence[str], images: Any) -> None:
        """Raises GraphError if what is drawn in evaluation matters, as it does not where nothing is dropped."""
        part = runnable.program.part
        rng = np.random.default_rng(0)
        found = []
        with tf.init_scope():
            fed = []
            for each in part.inputs:
                given = images.shape if each.name == self._old.input else tf.TensorShape(each.shape)
                lengths = [2, *(n or 8 for n in (given.as_list()[1:] if given.rank is not None else ()))]
                dtype = self._widened(each.dtype)
                fed.append(tf.cast(rng.random(lengths) if dtype.is_floating else np.zeros(lengths), dtype))
            for value in (0.0, 1.0 - 2.0**-10):
                run = tf.function(functools.partial(self._run, runnable, targets, (), held=value), autograph=False)
                found += [[each.numpy() for each in run(None, *fed)] for _ in range(2)]  # loops draw anew each time
        if any((first != each).any() for first, *others in zip(*found, strict=True) for each in others):
            raise GraphError(
                f"{self._old.where}: the outputs are random in evaluation too, by {join_some(part.random)}; nothing switches that "
                "off: graph_inputs='TENSOR=TRAINING/EVALUATION' sets such a probability by its name"
            )

    def _specs(self, program: Program, definition: Any) -> dict[str, tf.TensorSpec]:
        """What the imported part reads: tensor -> its dtype and shape."""
        part = program.part
        found = {}
        for each in part.inputs:
            shape = None if each.shape is None else [None, *each.shape[1:]]
            found[each.name] = tf.TensorSpec(shape, self._widened(each.dtype))
        for variable in part.variables:
            made = self._held[variable.node]
            found[f"{variable.node}:0"] = tf.TensorSpec(made.shape, made.dtype)
        for name, value in part.fixed.items():
            found[name] = tf.TensorSpec(value.shape, self._widened(tf.as_dtype(value.dtype)))
        read = _read(definition)
        return {name: spec for name, spec in found.items() if name in read}

    def _as_input(self, runnable: _Runnable, name: str, values: Any) -> Any:
        """The values that are fed, in the dtype and with the rank that the graph expects."""
        expected = next(each for each in runnable.program.part.inputs if each.name == name)
        dtype = self._widened(expected.dtype)
        values = tf.convert_to_tensor(values)
        if name != self._old.input and (classes := _count_classes(values, expected.shape)):
            values = tf.one_hot(values, classes)
        if dtype.is_integer and values.dtype.is_floating:
            values = tf.round(values)
        values = tf.cast(values, dtype)
        if expected.shape is None or values.shape.rank is None:
            return values
        rank = len(expected.shape)
        while values.shape.rank > rank and values.shape[-1] == 1:
            values = tf.squeeze(values, axis=-1)
        while values.shape.rank < rank and expected.shape[-1] == 1:
            values = values[..., tf.newaxis]
        if not tf.TensorShape([None, *expected.shape[1:]]).is_compatible_with(values.shape):
            fed = producer(name)
            raise GraphError(
                f"{self._old.where}: {fed} is fed with {list(expected.shape)}; these data are {values.shape.as_list()}. "
                f"--image_size=HEIGHTxWIDTH resizes images, and --inputs='{fed}[None,...]' gives the graph another shape"
            )
        return values

    def _run(
        self,
        runnable: _Runnable,
        targets: Sequence[str],
        also: Sequence[str],
        seeds: Any,
        *data: Any,
        held: float | None = None,
    ) -> list[Any]:
        """Imports the part into the graph that is being traced, and tells the tapes its gradient."""
        part = runnable.program.part
        known = dict(zip((each.name for each in part.inputs), data, strict=True))
        sources = [tensor for tensor in known.values() if tensor.dtype.is_floating]
        for variable in part.variables:
            known[f"{variable.node}:0"] = value = self._held[variable.node].read_value()
            sources.append(value)
        for name, value in part.fixed.items():
            known[name] = tf.constant(value, self._widened(tf.as_dtype(value.dtype)))
        if held is None:
            known |= drawing.draw(runnable.draws, seeds)
        else:
            known |= drawing.hold(runnable.draws, data[0], held)
        read = _read(runnable.definition)
        wanted = [*targets, *also, *runnable.program.updates.values()]
        missing = [name for name in dict.fromkeys(wanted) if name not in known]
        fed = {name: tensor for name, tensor in known.items() if name in read}
        made = import_functional(runnable.definition, fed, missing, name="graph")
        safety.check_sizes(tf.compat.v1.get_default_graph(), where=self._old.where)
        found = known | dict(zip(missing, made, strict=True))
        self._record([found[name] for name in targets if name not in known], sources)
        for node, name in runnable.program.updates.items():
            self._held[node].assign(found[name])
        kept = [tf.stop_gradient(found[name]) for name in also]
        return [*(tf.identity(found[name]) if name in known else found[name] for name in targets), *kept]

    def _record(self, outputs: Sequence[Any], sources: Sequence[Any]) -> None:
        sources = [tensor for tensor in sources if tensor.dtype.is_floating and tensorflow_private.is_recorded(tensor)]
        outputs = [tensor for tensor in outputs if tensor.dtype.is_floating]
        if not sources or not outputs:
            return

        def backward(*gradients: Any) -> list[Any]:
            try:
                found = tf.gradients(outputs, sources, list(gradients))
            except LookupError as error:
                raise GraphError(f"{self._old.where}: {error}") from None
            return [None if each is None else tf.convert_to_tensor(each) for each in found]

        tensorflow_private.record_gradient(outputs, sources, backward)


def _count_classes(values: Any, expected: Sequence[int | None] | None) -> int:
    """The length of a row, where values are the numbers of classes and a row for each example is expected; else 0."""
    if expected is None or len(expected) != 2 or not values.dtype.is_integer or values.shape.rank != 1:
        return 0
    return expected[1] if expected[1] is not None and expected[1] > 1 else 0


def _within(scope: str, name: str) -> str:
    """The name of a variable within a scope that it lies in."""
    return name.removeprefix(f"{scope}/") if scope else name


def _read(definition: Any) -> set[str]:
    """The tensors that the nodes of a GraphDef read."""
    return {tensor_name(source) for node in definition.node for source in node.input if not source.startswith("^")}
