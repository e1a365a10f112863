"""Every private name of TensorFlow that the project uses, each with what it is used for.

The next TensorFlow is a job for this file and its test: nothing else imports ``tensorflow.python``. TensorFlow is
imported when a function is called, so that this module belongs to the ground.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any


def op_definition(kind: str) -> Any:
    """The OpDef of an operation's type, with its arguments and whether it is stateful; None for an unknown type.

    No public function tells which operations exist without making one.

    Example:
        >>> op_definition("MatMul").is_stateful, op_definition("NoSuchOp")
        (False, None)
    """
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(kind)


@functools.cache
def has_gradient(kind: str) -> bool:
    """Whether a gradient function (None included) is registered for an operation's type.

    The registry is the truth about what is differentiable; it has no public reader.
    """
    from tensorflow.python.framework import ops

    try:
        return ops.gradient_registry.lookup(kind) is not None
    except LookupError:
        return False


def handle_data(handle: Any) -> Any:
    """The shape and dtype of what a resource handle stands for, as a HandleData proto.

    There is no public way to ask what a handle is of.
    """
    from tensorflow.python.ops import handle_data_util

    return handle_data_util.get_resource_handle_data(handle)


def uninitialized_variable(*, shape: Any, dtype: Any, trainable: bool, name: str | None) -> Any:
    """A variable with a handle, a shape and a dtype, but no value and no memory."""
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    return UninitializedVariable(shape=shape, dtype=dtype, trainable=trainable, name=name)


def cancellation_manager() -> Any:
    """What stops a function that is running: there is no public way."""
    from tensorflow.python.eager import cancellation

    return cancellation.CancellationManager()


def call_unchecked(function: Any, flat: Sequence[Any]) -> Any:
    """Calls a concrete function with its flat arguments, without the checks of a call.

    They take as long as all kernels of a step on kept features; the caller has made and checked the arguments.
    """
    return function.inference_fn.call_preflattened([*flat, *function.captured_inputs])


def ignored_module_properties(module: Any) -> Collection[str]:
    """Attributes that ``tf.Module`` itself skips when it looks for variables."""
    return type(module)._TF_MODULE_IGNORED_PROPERTIES


def reference_type(dtype: Any) -> Any:
    """The reference type (``float32_ref``) of a dtype, as old graphs have it."""
    return dtype._as_ref


def disable_op_determinism() -> None:
    """Switches op determinism off again, for tests: there is no public way."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()
