"""The three TF1 ways to freeze variables, behind one signature: each obeys a Selection, and none leaks silently.

| method | what it does | what TF1 lets through |
|---|---|---|
| trainable | frozen variables are created with ``trainable=False`` | a var_list that names them; regularizers |
| stop_gradient | frozen variables are read through ``tf.stop_gradient`` | a regularizer or decay of the variable itself |
| var_list | ``compute_gradients(var_list=...)`` leaves them out | decay; other calls of ``minimize`` |

None of them affects BatchNorm statistics; ``statistics_move`` says how to call such a layer.

    selection = freezing.resolve_selection(build, "head/.* @blocks[-2:]")
    freeze = freezing.Freezing("stop_gradient", selection)
    with freeze.scope():
        loss = build()
    gradients = freeze.compute_gradients(optimizer, loss)
    train_op = optimizer.apply_gradients(gradients.applied)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import tensorflow as tf

from engine.errors import InputError
from engine.selection.filters import Filter
from engine.selection.selection import Selection, Statistics, select
from engine.selection.variables import name_graph_variables
from engine.text import join_some, nearest

v1 = tf.compat.v1

METHODS = ("trainable", "stop_gradient", "var_list")


class FreezingError(InputError):
    """A method that does not exist, or a graph that contradicts the selection."""


class Gradients(NamedTuple):
    """The result of ``Freezing.compute_gradients``, for every trained variable, as ``apply_gradients`` takes it.

    ``listed`` has the names of all variables that the optimizer's ``compute_gradients`` returned.
    """

    applied: list[tuple[Any, Any]]
    listed: list[str]


def resolve_selection(
    build: Callable[[], Any], filter: Filter | str, *, statistics: Statistics = "follow"
) -> Selection:
    """Resolves a filter against the variables that ``build`` creates, before the graph that trains is built.

    ``build`` is called in a temporary graph, so that ``@blocks[-2:]`` can be resolved, and errors in the filter (an
    item that matches nothing) are found, before the first variable is created. Raises FilterError as ``engine.select``
    does, and ModelError if ``build`` creates no variable.
    """
    with tf.Graph().as_default():
        build()
        return select(name_graph_variables(v1.global_variables()), filter, statistics=statistics)


def statistics_move(selection: Selection, scope: str) -> bool:
    """Whether the statistics of a layer move, which is the right ``training`` argument in a training graph.

    Raises FreezingError if the selection has no layer with statistics in that scope.
    """
    layers = {entry.layer for entry in selection.variables if entry.kind == "statistic"}
    if scope not in layers:
        raise FreezingError(
            f"scope={scope!r} is not the scope of a layer with statistics{nearest(scope, sorted(layers))}"
        )
    return any(entry.layer == scope for entry in selection.moving)


@dataclass(frozen=True)
class Freezing:
    """One method ("trainable", "stop_gradient" or "var_list"), and the selection that it enforces.

    The variables of the selection are named as in the graph (see ``resolve_selection``), as in the engine's for its own
    networks. Raises FreezingError if there is no such method.
    """

    method: str
    selection: Selection

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise FreezingError(
                f"method={self.method!r} is not a valid method; expected {', '.join(METHODS)}{nearest(self.method, list(METHODS))}"
            )

    def trains(self, name: str) -> bool:
        """Whether the selection trains the variable (or all of its partitions).

        Raises FreezingError if it has no such variable, so that a renamed scope cannot silently unfreeze it.
        """
        if name not in self._verdicts:
            raise FreezingError(
                f"variable {name!r}: the filter was resolved without it, so it is unknown whether it trains; was a scope "
                f"renamed?{nearest(name, list(self._verdicts))}"
            )
        if len(self._verdicts[name]) > 1:
            raise FreezingError(f"variable {name!r}: the filter trains some of its partitions and freezes others")
        return next(iter(self._verdicts[name]))

    def trainable(self, name: str) -> bool:
        """Returns the value for the ``trainable=`` argument of a layer."""
        return self.trains(name) if self.method == "trainable" else True

    def stopped(self, name: str, value: Any) -> Any:
        """Returns the value of a variable as the model should read it, behind ``stop_gradient`` if that freezes it."""
        if self.method != "stop_gradient" or self.trains(name):
            return value
        # outside of any loop: inside, as in dynamic_rnn, the gradient would be zeros instead of None, and an
        # optimizer with momentum would still move the variable
        with tf.init_scope():
            return tf.stop_gradient(tf.convert_to_tensor(value))

    def getter(self, getter: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        """A custom getter for ``variable_scope`` that freezes variables inside any layer.

        Variables that are created with ``trainable=False`` anyway (statistics, slots) are returned as they are:
        BatchNorm assigns to its statistics, so they must stay variables. A frozen variable loses its regularizer, whose
        gradient would bypass ``stop_gradient``. Raises FreezingError if the variable is unknown, or exists with another
        ``trainable`` than the selection requires, which reuse would silently keep.
        """
        if kwargs.get("trainable") is False:
            return getter(name, *args, **kwargs)
        trains = self.trains(name)
        kwargs["trainable"] = self.trainable(name)
        if not trains:
            kwargs["regularizer"] = None
        variable = getter(name, *args, **kwargs)
        for part in [variable] if isinstance(variable, (tf.Variable, tf.Tensor)) else variable:
            if getattr(part, "trainable", kwargs["trainable"]) != kwargs["trainable"]:
                raise FreezingError(
                    f"variable {name!r}: it was created with trainable={part.trainable}, which reuse keeps, but "
                    f"method={self.method} needs {kwargs['trainable']}; first build it under Freezing.scope()"
                )
        return self.stopped(name, variable)

    @contextlib.contextmanager
    def scope(self) -> Iterator[Any]:
        """The variable scope to build the model in: the current one with this getter."""
        with v1.variable_scope(v1.get_variable_scope(), custom_getter=self.getter, auxiliary_name_scope=False) as scope:
            yield scope

    def compute_gradients(self, optimizer: Any, loss: Any) -> Gradients:
        """Calls ``optimizer.compute_gradients(loss)`` for this method and checks the result.

        The optimizer is one of tf.compat.v1.train; the loss is a scalar of the current graph, including regularisation.
        Raises FreezingError if a frozen variable has a gradient, a trained one has none or is not among the graph's
        trainable variables, or the graph lacks a variable of the selection.
        """
        trainable = v1.trainable_variables()
        made = {variable.op.name: variable for variable in trainable}
        wanted = [entry.path for entry in self.selection.trained]
        if missing := [path for path in wanted if path not in made]:
            raise FreezingError(
                f"{len(missing)} variable(s) should train, but the graph's trainable variables lack {join_some(missing)}; "
                f"they were created with trainable=False or under another name{nearest(missing[0], list(made))}"
            )
        var_list = [made[path] for path in wanted] if self.method == "var_list" else None
        found = optimizer.compute_gradients(loss, var_list=var_list)
        gradients = {variable.op.name: gradient for gradient, variable in found}
        trained = set(wanted)
        leaked = [name for name, gradient in gradients.items() if gradient is not None and name not in trained]
        if leaked:
            raise FreezingError(
                f"method={self.method}: {len(leaked)} frozen variable(s) still have a gradient: {join_some(leaked)}; "
                "the model was built outside Freezing.scope(), or the loss has a regulariser that reads them"
            )
        if cut := [path for path in wanted if gradients[path] is None]:
            raise FreezingError(
                f"the loss does not depend on {len(cut)} trained variable(s): {join_some(cut)}; leave them out of the filter"
            )
        return Gradients([(gradients[path], made[path]) for path in wanted], list(gradients))

    @cached_property
    def _verdicts(self) -> dict[str, set[bool]]:
        """Name or alias of a weight -> whether the selection trains it, or each of its partitions."""
        trained = {entry.path for entry in self.selection.trained}
        found: dict[str, set[bool]] = {}
        for entry in self.selection.variables:
            for path in entry.paths:
                found.setdefault(path, set()).add(entry.path in trained)
        return found
