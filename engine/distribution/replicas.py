"""The replicas of a process: its devices, the copies of variables on them, and functions called with those copies.

The first replica uses the variables themselves. Every other replica has copies of them on its own device, which are made
when a function that uses them is first called there. A function is traced once, with the variables themselves; a replica
calls it with its copies in their place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from engine import tensorflow_private
from engine.distribution.distribution import DistributionError
from engine.distribution.shares import Share
from engine.text import join_some

_STRATEGIES = (
    "tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy or tf.distribute.OneDeviceStrategy"
)


class Replicas:
    """The replicas that a strategy runs in this process.

    Attributes:
        strategy: the ``tf.distribute.Strategy``.
        devices: the device of each replica of this process.
        share: their numbers, among all replicas of all workers.

    Raises:
        DistributionError: the strategy is of another kind.
    """

    def __init__(self, strategy: Any) -> None:
        kinds = (
            tf.distribute.MirroredStrategy,
            tf.distribute.MultiWorkerMirroredStrategy,
            tf.distribute.OneDeviceStrategy,
        )
        if not isinstance(strategy, kinds):
            raise DistributionError(f"strategy={strategy!r}: expected {_STRATEGIES}")
        self.strategy = strategy
        self.devices: tuple[str, ...] = tuple(strategy.extended.worker_devices)
        first = self._number_of_first()
        self.share = Share(first, first + len(self.devices), strategy.num_replicas_in_sync)
        self._copies: dict[int, list[Any]] = {}  # by the id of a variable, its copies on the devices after the first
        self._originals: dict[int, weakref.ref[Any]] = {}
        self._compare: Callable[[], Any] | None = None

    def _number_of_first(self) -> int:
        """The number of this process's first replica among all."""
        numbers: list[int] = []

        def note() -> Any:
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            numbers.append(int(tf.get_static_value(here)))
            return tf.constant(0)

        tf.function(lambda: self.strategy.run(note), autograph=False)()
        return min(numbers)

    def run(self, replica: Callable[[int], Any]) -> Any:
        """Runs ``replica(number in this process)`` on every device, inside a tf.function; returns the first result."""

        def here() -> Any:
            number = int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
            return replica(number - self.share.first)

        return tf.nest.map_structure(
            lambda value: self.strategy.experimental_local_results(value)[0], self.strategy.run(here)
        )

    def prepare(self, function: Any, known: Mapping[int, Any]) -> None:
        """Makes the copies of the variables that a concrete function has captured; see ``call``.

        Raises:
            DistributionError: the function uses a resource that is not known, of which another device has no copy.
        """
        if len(self.devices) == 1:
            return
        resources = [outer for outer in function.captured_inputs if outer.dtype == tf.resource]
        unknown = [getattr(outer, "name", str(outer)) for outer in resources if id(outer) not in known]
        if unknown:
            raise DistributionError(
                f"strategy: the step uses {len(unknown)} resource(s) that the model does not list, so that the other "
                f"devices have no copy of them: {join_some(unknown)}"
            )
        for outer in resources:
            self.variables(known[id(outer)])

    def call(self, function: Any, arguments: Sequence[Any], replica: int, known: Mapping[int, Any]) -> Any:
        """Calls a prepared concrete function on a replica, with its copies of the variables that the function has captured.

        Args:
            arguments: as the function was traced with; nested structures.
            replica: its number in this process.
            known: by the id of its handle, each variable that the function may have captured.
        """
        captured = [
            self.variables(known[id(outer)])[replica].handle if id(outer) in known else outer
            for outer in function.captured_inputs
        ]
        return tensorflow_private.call_with_captures(function, tf.nest.flatten(list(arguments)), captured)

    def call_on(self, function: Any, arguments: Sequence[Any], replica: int, known: Mapping[int, Any]) -> Any:
        """As ``call``, outside of a tf.function: runs the function on the replica's device."""
        with tf.device(self.devices[replica]):
            return self.call(function, arguments, replica, known)

    def variables(self, variable: Any) -> list[Any]:
        """The variable of each replica in this process: the variable itself, and its copies."""
        if len(self.devices) == 1:
            return [variable]
        if hasattr(variable, "values") and isinstance(variable.values, (list, tuple)):
            raise DistributionError(
                f"{variable.name}: it was created inside strategy.scope(); create the model outside of it: the step keeps "
                "the copies for the other devices itself"
            )
        if id(variable) not in self._copies:
            if tf.distribute.has_strategy():
                raise DistributionError(
                    "strategy: call the step outside of strategy.scope(); it enters the strategy itself"
                )
            self._copies[id(variable)] = [_copy(variable, device) for device in self.devices[1:]]
            self._originals[id(variable)] = weakref.ref(variable)
            weakref.finalize(variable, self._forget, id(variable)).atexit = False
            self._compare = None
        return [variable, *self._copies[id(variable)]]

    def handles(self, variables: Any) -> list[Any]:
        """For each replica of this process, the handles of nested variables, or of its copies of them."""
        return [
            tf.nest.map_structure(lambda variable, n=number: self.variables(variable)[n].handle, variables)
            for number in range(len(self.devices))
        ]

    def _forget(self, key: int) -> None:
        self._copies.pop(key, None)
        self._originals.pop(key, None)
        self._compare = None

    def differing(self) -> list[tuple[Any, int]]:
        """The variables of which the copy of a replica is not equal to the bit, with the number of that replica."""
        found = []
        for original, copies in self._pairs():
            value = original.numpy().tobytes()
            found += [(original, n) for n, copy in enumerate(copies, 1) if copy.numpy().tobytes() != value]
        return found

    def follow(self) -> None:
        """Gives the copies the values of their variables again where someone else than the step has changed those.

        Looks at the sum of each variable, so a change that keeps the sum to the bit is not seen (``differing`` sees it).
        """
        if not self._copies:
            return
        if self._compare is None:
            self._compare = _comparison(self._pairs())
        if not bool(self._compare()):
            self.synchronize()

    def synchronize(self) -> None:
        """Gives all copies the values of their variables."""
        for original, copies in self._pairs():
            for copy in copies:
                copy.assign(original)

    def _pairs(self) -> list[tuple[Any, list[Any]]]:
        pairs = [(self._originals[key](), copies) for key, copies in self._copies.items()]
        return [(original, copies) for original, copies in pairs if original is not None]


def by_handle(variables: Iterable[Any]) -> dict[int, Any]:
    """Returns the variables by the ids of their handles, as ``Replicas.call`` expects them."""
    return {id(variable.handle): variable for variable in variables}


def _copy(variable: Any, device: str) -> Any:
    with tf.device(device):
        return tf.Variable(tf.identity(variable.read_value()), trainable=False, name="copy", dtype=variable.dtype)


def _comparison(pairs: Sequence[tuple[Any, Sequence[Any]]]) -> Callable[[], Any]:
    """A compiled function that says whether each variable has the same sum as its copies."""

    def compare() -> Any:
        same = []
        for original, copies in pairs:
            same += [_is_same(_sum(original), _sum(copy)) for copy in copies]
        return tf.reduce_all(tf.stack(same))

    found: Callable[[], Any] = tf.function(compare, autograph=False)
    return found


def _sum(variable: Any) -> Any:
    with tf.device(variable.device):
        value = variable.read_value()
        if variable.dtype == tf.bool:
            value = tf.cast(value, tf.int32)
        return tf.reduce_sum(value)


def _is_same(one: Any, other: Any) -> Any:
    both_nan = (one != one) & (other != other)
    return (one == other) | both_nan
