"""Rematerialisation: the backward pass recomputes forward tensors instead of keeping them (arXiv:1604.06174).

A model marks what can be recomputed: ``block`` around a whole block, ``elementwise`` around cheap element-wise
operations and the matrix products that read them. Which marks count is decided when a step is traced (``scope``), so a
model is built once for all modes. Only what the backward pass needs is recomputed: of
``elementwise(lambda h: down(gelu(h)), h)`` that is the GELU but not the product, whose gradient reads only its inputs.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

from engine import tensorflow_private
from engine.errors import InputError
from engine.text import nearest

Mode = Literal["none", "elementwise", "blocks"]
MODES: tuple[Mode, ...] = ("none", "elementwise", "blocks")


class RematError(InputError):
    """The mode is unknown, or the model has no marks."""


class _Scope:
    def __init__(self, mode: Mode, variables: frozenset[int], compiled: bool) -> None:
        self.mode = mode
        self.compiled = compiled
        self.variables = variables
        self.marks = 0


_current: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("remat", default=None)


def check(mode: str) -> Mode:
    """Returns the mode of a name; raises RematError if it is unknown."""
    for known in MODES:
        if mode == known:
            return known
    raise RematError(f"remat={mode!r}: expected one of {', '.join(MODES)}{nearest(mode, list(MODES))}")


@contextlib.contextmanager
def scope(mode: Mode, variables: Any = (), *, compiled: bool = False) -> Iterator[None]:
    """Sets the mode for a training step that is traced in a ``with`` block.

    "none" keeps everything, "elementwise" recomputes inside those marks, "blocks" inside both kinds. ``variables`` are
    differentiated; others inside a mark get no gradient. ``compiled`` says that XLA will compile the step. RematError is raised at the end of the block if the mode is
    not "none" and the model has no mark.
    """
    here = _Scope(mode, frozenset(id(variable) for variable in variables), compiled)
    token = _current.set(here)
    try:
        yield
    finally:
        _current.reset(token)
    if mode != "none" and not here.marks:
        raise RematError(
            f"remat={mode}: the model does not mark anything to recompute; the project's ViT does, and your own model "
            "can do so with engine.training.remat"
        )


def block(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns ``function(x)``; in mode "blocks", only ``x`` is kept for the backward pass."""
    return _marked(function, x, ("blocks",))


def elementwise(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns ``function(x)``; in modes "elementwise" and "blocks", only ``x`` is kept for the backward pass."""
    return _marked(function, x, ("elementwise", "blocks"))


def _marked(function: Callable[[Any], Any], x: Any, modes: tuple[Mode, ...]) -> Any:
    import tensorflow as tf

    here = _current.get()
    if here is None or here.mode not in modes:
        return function(x)
    here.marks += 1

    @tf.custom_gradient
    def forward(x: Any) -> Any:
        outputs = function(x)

        def backward(*upstream: Any, variables: Any = ()) -> Any:
            mine = [variable for variable in variables if id(variable) in here.variables]
            # Waits for the incoming gradient: otherwise it would run during the forward pass.
            if here.compiled:
                again = tensorflow_private.optimization_barrier([x, *upstream])[0]
            else:
                with tf.control_dependencies(list(upstream)):
                    again = tf.identity(x)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([again, *mine])
                outputs = tf.nest.flatten(_with_marks(function, again, here))
            gradients = tape.gradient(outputs, [again, *mine], output_gradients=list(upstream))
            found = {id(variable): gradient for variable, gradient in zip(mine, gradients[1:], strict=True)}
            of_variables = [found.get(id(variable)) for variable in variables]
            return (gradients[0], of_variables) if variables else gradients[0]

        return outputs, backward

    return forward(x)


def _with_marks(function: Callable[[Any], Any], x: Any, here: _Scope) -> Any:
    """``function(x)`` with the scope restored for the marks inside it: gradients are taken after the scope's end."""
    token = _current.set(here)
    try:
        return function(x)
    finally:
        _current.reset(token)
