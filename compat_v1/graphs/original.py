"""Runs an extracted graph with the values of its variables, as a function."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import GraphError
from compat_v1.graphs.extract import Extracted, Input, OldVariable
from engine import tensorflow_private
from engine.graphs import safety
from engine.porting.readers.source import TensorSource
from engine.text import nearest


class Original:
    """The old network as a function of its feeds; it returns the same outputs as in its Session.

    TensorFlow's graph optimizer is off for it: what that rearranges (``a * b + a * c`` becomes ``a * (b + c)``) is
    rounded differently, and a recurrent network adds such differences up to 1e-4. An original that runs in the process
    can end it, since a kernel may abort on a shape that it does not expect; ``Apart`` (compat_v1.porting.apart) can
    not.

    Of ``source``, the checkpoint, only the variables of the extracted part are read. A call may take ``time_limit``
    seconds, since an old graph may contain an endless loop; an operation that is already running is not interrupted.
    Raises GraphError if the checkpoint lacks a variable or has it in another shape or dtype, or TensorFlow refuses the
    graph; UnsafeGraphError if a tensor would be too large; and FileError if the checkpoint is damaged.
    """

    def __init__(self, extracted: Extracted, source: TensorSource, *, time_limit: float = 600.0) -> None:
        self.extracted = extracted
        self._time_limit = time_limit
        values = {variable.node: read_value(variable, source, extracted.path) for variable in extracted.variables}
        with tf.device("CPU:0"):
            self._kept = {
                variable.node: tf.Variable(values[variable.node], trainable=False)
                if variable.resource
                else tf.constant(values[variable.node])
                for variable in extracted.variables
            }
        definition, fills = extracted.tables
        if fills:
            self._run(self._function(definition, (), operations=fills), ())
        self._call = self._function(extracted.definition, extracted.inputs, tensors=extracted.outputs)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Computes output tensor -> value from input tensor -> value.

        Raises GraphError if a feed is missing, unknown, or of another shape or dtype; or the graph fails or takes too
        long.
        """
        names = [each.name for each in self.extracted.inputs]
        if set(feeds) != set(names):
            raise GraphError(
                f"inputs={', '.join(feeds)}: {self.extracted.path} expects {', '.join(names) or 'no input'}"
            )
        fed = [_checked(each, np.asarray(feeds[each.name])) for each in self.extracted.inputs]
        results = self._run(self._call, [tf.constant(array) for array in fed])
        return dict(zip(self.extracted.outputs, results, strict=True))

    def _function(
        self,
        definition: Any,
        inputs: tuple[Input, ...],
        *,
        tensors: tuple[str, ...] = (),
        operations: tuple[str, ...] = (),
    ) -> Any:
        def build(*fed: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()
            known = {each.name: tensor for each, tensor in zip(inputs, fed, strict=True)}
            known |= {name: tf.constant(value) for name, value in self.extracted.fixed.items()}
            for variable in self.extracted.variables:
                kept = self._kept[variable.node]
                known[f"{variable.node}:0"] = graph.capture(kept.handle if variable.resource else kept)
            read = {name if ":" in name else f"{name}:0" for node in definition.node for name in node.input}
            missing = [name for name in tensors if name not in known]
            made = tf.graph_util.import_graph_def(
                definition,
                input_map={name: tensor for name, tensor in known.items() if name in read},
                return_elements=[*missing, *operations],
                name="original",
            )
            safety.check_sizes(graph, where=self.extracted.path)
            if operations:
                with tf.control_dependencies(made):
                    return tf.constant(True)
            found = known | dict(zip(missing, made, strict=True))
            return [tf.identity(found[name]) for name in tensors]

        specs = [tf.TensorSpec(each.shape, each.dtype) for each in inputs]
        try:
            return tf.compat.v1.wrap_function(build, specs)
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise GraphError(f"{self.extracted.path}: TensorFlow refuses the graph: {_text(error)}") from None

    def _run(self, function: Any, feeds: Any) -> list[np.ndarray]:
        manager = tensorflow_private.cancellation_manager()
        timer = threading.Timer(self._time_limit, manager.start_cancel)
        timer.daemon = True
        timer.start()
        try:
            with tensorflow_private.graph_optimizer_off():
                results = manager.get_cancelable_function(function)(*feeds)
            return [each.numpy() for each in tf.nest.flatten(results)]
        except tf.errors.CancelledError:
            limit = f"{self._time_limit:g} seconds"
            raise GraphError(
                f"{self.extracted.path}: the graph did not finish within {limit} and was stopped"
            ) from None
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise GraphError(f"{self.extracted.path}: the graph failed: {_text(error)}") from None
        finally:
            timer.cancel()


def read_value(variable: OldVariable, source: TensorSource, where: str) -> np.ndarray:
    """Reads the value of a variable: a whole tensor, or a part of one; GraphError if the checkpoint does not fit."""
    names = source.names()
    part = variable.saved.part
    if variable.saved.key in names:
        key = variable.saved.key
    elif variable.node in names:
        key, part = variable.node, None
    else:
        raise GraphError(
            f"{source.path}: there is no {variable.saved.key}, which the graph {where} reads{nearest(variable.node, names)}"
        )
    shape, dtype = source.shape(key), tf.as_dtype(source.dtype(key))
    if part is not None and part.full == shape and part.full != part.shape:
        rows = source.read_slice(key, part.begin[0], part.begin[0] + part.shape[0])
        columns = tuple(slice(b, b + n) for b, n in zip(part.begin[1:], part.shape[1:], strict=True))
        value = rows[(slice(None), *columns)]
    else:
        value = None
        shape = shape if part is None else part.shape if part.full == shape else shape
    have = tuple(value.shape) if value is not None else shape
    if dtype != variable.dtype.base_dtype or not tf.TensorShape(variable.shape).is_compatible_with(have):
        raise GraphError(
            f"{source.path}: {key} is {list(have)} {dtype.name}; the graph {where} expects "
            f"{variable.shape if variable.shape is None else list(variable.shape)} {variable.dtype.name}"
        )
    return source.read(key) if value is None else value


def _checked(wanted: Input, array: np.ndarray) -> np.ndarray:
    dtype = np.dtype(wanted.dtype.as_numpy_dtype)
    same = array.dtype == dtype or (wanted.dtype != tf.string and np.can_cast(array.dtype, dtype, casting="same_kind"))
    if wanted.dtype == tf.string:
        same = array.dtype.kind in "OSU"
    if not same or not tf.TensorShape(wanted.shape).is_compatible_with(array.shape):
        shape = "any shape" if wanted.shape is None else [n if n is not None else "?" for n in wanted.shape]
        raise GraphError(
            f"inputs={wanted.name}: got {list(array.shape)} {array.dtype.name}, expected {shape} {wanted.dtype.name}"
        )
    return array if wanted.dtype == tf.string else array.astype(dtype, copy=False)


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
