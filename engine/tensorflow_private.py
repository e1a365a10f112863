"""All private names of TensorFlow that the project uses, each with its purpose.

Supporting a new version of TensorFlow means checking this file and its test: no other module imports
``tensorflow.python``. TensorFlow is imported only when a function is called.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
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


@functools.cache
def has_gradient(kind: str) -> bool:
    """Whether a gradient function is registered for an operation type; the registry has no public reader."""
    from tensorflow.python.framework import ops

    try:
        return ops.gradient_registry.lookup(kind) is not None
    except LookupError:
        return False


def handle_data(handle: Any) -> Any:
    """Returns the shape and dtype of the variable behind a handle, as a HandleData proto; there is no public way."""
    from tensorflow.python.ops import handle_data_util

    return handle_data_util.get_resource_handle_data(handle)


def uninitialized_variable(*, shape: Any, dtype: Any, trainable: bool, name: str | None) -> Any:
    """Returns a variable with a handle, a shape and a dtype, but without a value and without memory."""
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    return UninitializedVariable(shape=shape, dtype=dtype, trainable=trainable, name=name)


def cancellation_manager() -> Any:
    """Returns an object that can stop a running function; there is no public way to do that."""
    from tensorflow.python.eager import cancellation

    return cancellation.CancellationManager()


def call_unchecked(function: Any, flat: Sequence[Any]) -> Any:
    """Calls a concrete function with flattened arguments, without checking them.

    The checks take as long as all kernels of a step on cached features. The caller must pass valid arguments.
    """
    return function.inference_fn.call_preflattened([*flat, *function.captured_inputs])


def ignored_module_properties(module: Any) -> Collection[str]:
    """Returns the attributes that ``tf.Module`` itself skips when it collects variables."""
    return type(module)._TF_MODULE_IGNORED_PROPERTIES


def reference_type(dtype: Any) -> Any:
    """Returns the reference type of a dtype, such as ``float32_ref``, which old graphs use."""
    return dtype._as_ref


def disable_op_determinism() -> None:
    """Switches op determinism off again, for tests; there is no public way to do that."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()
