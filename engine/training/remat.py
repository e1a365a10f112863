"""Rematerialisation: forward tensors are computed again in the backward pass instead of being kept
(arXiv:1604.06174).

A model marks what can be computed again: ``block`` around a whole block, ``elementwise`` around cheap
element-wise work and the products that read it. Which marks count is decided where a step is traced
(``scope``), so a model is built once for all modes. In a graph only what the backward pass needs is
computed again: of ``elementwise(lambda h: down(gelu(h)), h)`` the GELU, not the product, whose
gradient reads its inputs alone.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import tensorflow as tf

from engine.errors import InputError
from engine.text import nearest

Mode = Literal["none", "elementwise", "blocks"]
MODES: tuple[Mode, ...] = ("none", "elementwise", "blocks")


class RematError(InputError):
    """A mode that does not exist, or a model without marks."""


class _Scope:
    def __init__(self, mode: Mode, variables: frozenset[int]) -> None:
        self.mode = mode
        self.variables = variables
        self.marks = 0


_current: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("remat", default=None)


def check(mode: str) -> Mode:
    """The mode of that name.

    Raises:
        RematError: there is none.
    """
    for known in MODES:
        if mode == known:
            return known
    raise RematError(f"remat={mode!r}: known are {', '.join(MODES)}{nearest(mode, list(MODES))}")


@contextlib.contextmanager
def scope(mode: Mode, variables: Any = ()) -> Iterator[None]:
    """Surrounds the tracing of a training step.

    Args:
        mode: "none" keeps everything; "elementwise" heeds those marks; "blocks" both kinds, nested.
        variables: those that the step wants gradients of; others inside a mark get none.

    Raises:
        RematError: on leaving, when the mode is not "none" and the model has no mark.
    """
    here = _Scope(mode, frozenset(id(variable) for variable in variables))
    token = _current.set(here)
    try:
        yield
    finally:
        _current.reset(token)
    if mode != "none" and not here.marks:
        raise RematError(
            f"remat={mode}: the model marks nothing that can be computed again; the project's ViT does, "
            "and your own model can (engine.training.remat)"
        )


def block(function: Callable[[Any], Any], x: Any) -> Any:
    """``function(x)``, of which with mode "blocks" only ``x`` is kept."""
    return _marked(function, x, ("blocks",))


def elementwise(function: Callable[[Any], Any], x: Any) -> Any:
    """``function(x)``, of which with mode "elementwise" or "blocks" only ``x`` is kept."""
    return _marked(function, x, ("elementwise", "blocks"))


def _marked(function: Callable[[Any], Any], x: Any, modes: tuple[Mode, ...]) -> Any:
    here = _current.get()
    if here is None or here.mode not in modes:
        return function(x)
    here.marks += 1
    return _recomputed(function, x, here)


def _recomputed(function: Callable[[Any], Any], x: Any, here: _Scope) -> Any:
    @tf.custom_gradient
    def forward(x: Any) -> Any:
        outputs = function(x)

        def backward(*upstream: Any, variables: Any = ()) -> Any:
            mine = [variable for variable in variables if id(variable) in here.variables]
            # waits for the gradient that flows in: otherwise it would run beside the forward pass
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
    """``function(x)`` with the marks inside it heeded: gradients are taken after the scope was left."""
    token = _current.set(here)
    try:
        return function(x)
    finally:
        _current.reset(token)
