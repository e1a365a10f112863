"""All private names of TensorFlow that the project uses, each with its purpose.

Supporting a new version of TensorFlow means checking this file and its test: no other module imports
``tensorflow.python`` or ``tensorflow.compiler``. TensorFlow is imported only when a function is called.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any


def op_definition(kind: str) -> Any:
    """Returns the OpDef of an operation type (its arguments, whether it is stateful); None if the type is unknown.

    There is no public way to look up an operation type without creating an operation.

    Example:
        >>> op_definition("MatMul").is_stateful, op_definition("NoSuchOp")
        (False, None)
    """
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(kind)


def uses_onednn() -> bool:
    """Whether TensorFlow computes with oneDNN where it can, as TF_ENABLE_ONEDNN_OPTS or its own default decided.

    The default depends on the processor, and nothing public tells it.
    """
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


@contextlib.contextmanager
def mortal_gradients() -> Iterator[None]:
    """Makes the gradients that ``tf.custom_gradient`` registers in this scope end with the graphs that need them.

    TensorFlow keeps them for as long as the process lives, and with them all tensors of the graph that was traced. Here
    such a gradient belongs to the graph that is being traced and to those around it.
    """
    from tensorflow.python.framework import func_graph, ops

    registry, register = ops.gradient_registry, ops.RegisterGradient.__call__

    def register_weakly(registering: Any, function: Any) -> Any:
        graph, name = ops.get_default_graph(), registering._op_type
        if not name.startswith("CustomGradient-") or not isinstance(graph, func_graph.FuncGraph):
            return register(registering, function)
        while isinstance(graph, func_graph.FuncGraph):
            graph._mortal_gradients = [*getattr(graph, "_mortal_gradients", ()), function]
            graph = graph.outer_graph
        found = weakref.ref(function)
        registry.register(lambda *arguments: found()(*arguments), name)  # type: ignore[misc]
        weakref.finalize(function, registry._registry.pop, name, None).atexit = False
        return function

    ops.RegisterGradient.__call__ = register_weakly
    try:
        yield
    finally:
        ops.RegisterGradient.__call__ = register


@functools.cache
def has_gradient(kind: str) -> bool:
    """Whether a gradient function is registered for an operation type; the registry has no public reader."""
    from tensorflow.python.framework import ops

    try:
        return ops.gradient_registry.lookup(kind) is not None
    except LookupError:
        return False


def is_recorded(tensor: Any) -> bool:
    """Whether a gradient tape that is active records what is computed from a tensor; there is no public way to ask."""
    from tensorflow.python.eager import record

    return bool(record.should_record_backprop([tensor]))


def unrecorded() -> contextlib.AbstractContextManager[Any]:
    """A scope in which no gradient tape records, nor asks functions that are called for their gradients.

    ``GradientTape.stop_recording`` does that for one tape, but a layer does not know the tapes around it.
    """
    from tensorflow.python.eager import record

    return record.stop_recording()


def record_gradient(outputs: Sequence[Any], inputs: Sequence[Any], backward: Any) -> None:
    """Tells the active gradient tapes how outputs depend on inputs: ``backward(*gradients of outputs)`` gives theirs.

    A tape records operations as they are created one by one, so it does not see those of an imported graph.
    """
    from tensorflow.python.eager import record

    record.record_operation("imported_graph", list(outputs), list(inputs), backward)


@functools.cache
def kernel_devices(kind: str) -> frozenset[str]:
    """Returns the types of devices that have a kernel for an operation type, such as "CPU" and "XLA_CPU_JIT"; no public way.

    The kernels of XLA are registered when it first compiles something.
    """
    from tensorflow.python.framework import kernels

    _register_compiled_kernels()
    return frozenset(kernel.device_type for kernel in kernels.get_registered_kernels_for_op(kind).kernel)


@functools.cache
def _register_compiled_kernels() -> None:
    import tensorflow as tf

    tf.function(lambda: tf.constant(0), autograph=False, jit_compile=True)()


def optimization_barrier(tensors: Sequence[Any]) -> list[Any]:
    """Returns tensors that XLA does not compute before all of the given ones are there, nor take for equal to them.

    XLA ignores control dependencies; its own barrier has no public name.
    """
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return list(gen_xla_ops.xla_optimization_barrier(list(tensors)))


def handle_data(handle: Any) -> Any:
    """Returns the shape and dtype of the variable behind a handle, as a HandleData proto; there is no public way."""
    from tensorflow.python.ops import handle_data_util

    return handle_data_util.get_resource_handle_data(handle)


def copy_handle_data(source: Any, target: Any) -> None:
    """Lets a handle stand for a variable of the same shape and dtype as another handle; there is no public way."""
    from tensorflow.python.ops import handle_data_util

    handle_data_util.copy_handle_data(source, target)


def uninitialized_variable(*, shape: Any, dtype: Any, trainable: bool, name: str | None) -> Any:
    """Returns a variable with a handle, a shape and a dtype, but without a value and without memory."""
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    return UninitializedVariable(shape=shape, dtype=dtype, trainable=trainable, name=name)


def cancellation_manager() -> Any:
    """Returns an object that can stop a running function; there is no public way to do that."""
    from tensorflow.python.eager import cancellation

    return cancellation.CancellationManager()


@contextlib.contextmanager
def graph_optimizer_off() -> Iterator[None]:
    """Within this scope, functions run as they were built, without Grappler.

    The options are public, but only a private name shows whether a function will run with them.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.eager import context

    name = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        serialized = context.context().function_call_options.config_proto_serialized
        options = config_pb2.ConfigProto.FromString(serialized).graph_options.rewrite_options
        if not options.disable_meta_optimizer:
            raise RuntimeError("TensorFlow's graph optimizer could not be switched off")
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: before})


def call_unchecked(function: Any, flat: Sequence[Any]) -> Any:
    """Calls a concrete function with flattened arguments, without checking them.

    The checks take as long as all kernels of a step on cached features. The caller must pass valid arguments.
    """
    return function.inference_fn.call_preflattened([*flat, *function.captured_inputs])


def call_with_captures(function: Any, flat: Sequence[Any], captured: Sequence[Any]) -> Any:
    """Calls a concrete function with flattened arguments, and with other tensors in place of those that it has captured.

    Publicly a captured variable can only be replaced for all calls at once.
    """
    return function._call_flat(list(flat), list(captured))


def global_seed() -> int | None:
    """Returns the seed that ``tf.random.set_seed`` was given last; there is no public way to ask."""
    from tensorflow.python.eager import context

    return context.global_seed()


def inline_calls(function: Any) -> Any:
    """Returns the graph of a concrete function as a GraphDef, in which the functions that it calls are inlined.

    Functions of a SavedModel are graphs already, so that running functions eagerly while tracing does not inline them.
    """
    from tensorflow.python.framework import convert_to_constants

    return convert_to_constants._run_inline_graph_optimization(function, False, True)


def ignored_module_properties(module: Any) -> Collection[str]:
    """Returns the attributes that ``tf.Module`` itself skips when it collects variables."""
    return type(module)._TF_MODULE_IGNORED_PROPERTIES


def is_saved_object(value: Any) -> bool:
    """Whether an object tracks its attributes as a loaded SavedModel does, but is not a ``tf.Module``."""
    import tensorflow as tf

    return isinstance(value, tf.__internal__.tracking.AutoTrackable) and not isinstance(value, tf.Module)


def function_variables(value: Any) -> list[Any] | None:
    """Returns the variables that a concrete function, or the functions of a loaded one, captured; None for other objects."""
    from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
    from tensorflow.python.saved_model.function_deserialization import RestoredFunction

    functions = value.concrete_functions if isinstance(value, RestoredFunction) else [value]
    if not all(isinstance(function, ConcreteFunction) for function in functions):
        return None
    try:
        return [variable for function in functions for variable in function.variables]
    except AssertionError:  # a variable was deleted; calling the function says so
        return []


def function_graph(function: Any) -> tuple[Any, Any]:
    """Returns a library function as a GraphDef, whose placeholders are its arguments; and tensor in it -> tensor there.

    TensorFlow wants the functions that it calls to be known to the process, so they are left out meanwhile.
    """
    from tensorflow.python.framework import function_def_to_graph

    plain = type(function)()
    plain.CopyFrom(function)
    calls = [
        (node.name, name) for node in plain.node_def for name, value in node.attr.items() if value.HasField("func")
    ]
    for node in plain.node_def:
        for value in node.attr.values():
            if value.HasField("func"):
                value.func.name = ""
    definition, flat = function_def_to_graph.function_def_to_graph_def(plain)
    given = {node.name: node for node in function.node_def}
    made = {node.name: node for node in definition.node}
    for node, name in calls:
        made[node].attr[name].CopyFrom(given[node].attr[name])
    return definition, flat


def register_functions(library: Any) -> None:
    """Makes the functions of a GraphDef's library known to the process for good.

    ``import_graph_def`` adds them to the graph alone, which a ``tf.function`` leaves behind when it runs.
    """
    from tensorflow.python.eager import context

    for function in library.function:
        context.context().add_function_def(function)


def reference_type(dtype: Any) -> Any:
    """Returns the reference type of a dtype, such as ``float32_ref``, which old graphs use."""
    return dtype._as_ref


def disable_op_determinism() -> None:
    """Switches op determinism off again, for tests; there is no public way to do that."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()


def multi_worker_strategy(addresses: Sequence[str], worker: int, *, ring: bool) -> Any:
    """Returns a ``tf.distribute.MultiWorkerMirroredStrategy`` that neither waits for the other workers nor observes them.

    By default TensorFlow's coordination service does both. It waits for an hour without a word, and ends the process
    with a log message when the first worker is gone. ``ring`` lets the collectives run on CPUs, in rings.

    Raises:
        RuntimeError: TensorFlow has started.
    """
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy
    from tensorflow.python.eager import context

    if has_started():
        raise RuntimeError("TensorFlow has already started")
    context.context().configure_coordination_service(service_type="")  # no service
    collective_all_reduce_strategy.CollectiveAllReduceExtended._enable_check_health = False
    kinds = tf.distribute.experimental.CommunicationImplementation
    return tf.distribute.MultiWorkerMirroredStrategy(
        cluster_resolver=tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(addresses)}), task_type="worker", task_id=worker, rpc_layer="grpc"
        ),
        communication_options=tf.distribute.experimental.CommunicationOptions(
            implementation=kinds.RING if ring else kinds.AUTO
        ),
    )


def check_peer(worker: int, *, seconds: float) -> None:
    """Asks TensorFlow's server of another worker for its state; raises an error of ``tf.errors`` if it does not answer.

    Python's other threads stand still meanwhile. A process that was started anew is a FailedPreconditionError.
    """
    from tensorflow.python.eager import context

    context.context().check_collective_ops_peer_health(f"/job:worker/replica:0/task:{worker}", int(1000 * seconds))


def abort_collectives(message: str) -> None:
    """Makes the collective operations of this process, those that wait and all later ones, raise UnavailableError."""
    from tensorflow.core.protobuf import error_codes_pb2
    from tensorflow.python.eager import context

    context.context().abort_collective_ops(error_codes_pb2.UNAVAILABLE, message)


def has_started() -> bool:
    """Whether TensorFlow's runtime has started, after which its devices cannot be chosen any more."""
    from tensorflow.python.eager import context

    return context.context()._context_handle is not None


@contextlib.contextmanager
def quiet_logger() -> Iterator[None]:
    """Within this scope, TensorFlow's logger of Python code reports only errors; it tells each start of a strategy."""
    import logging

    import tensorflow as tf

    logger = tf.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
