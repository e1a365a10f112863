"""Cuts a training graph at its frost line, so that steps are fed what crosses the line instead of the images.

engine.frostline.line decides where the line is, for a graph that contains its variables and whose inputs are placeholders.
TF1 accepts feeds for any tensor, but that is not safe: Grappler ties constants to a tensor by control edges, which a feed
does not cut, and then everything below runs or needs the images (seen on a ConvNet with the folded ShapeN of a fed tensor
and a kernel). So the part above the line is copied, in the same graph and session and with the same variables, to
placeholders of its own, and these are fed. The part below does not run, and nothing else becomes slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from compat_v1.errors import SessionError
from compat_v1.training.training_graph import TrainingGraph
from engine.digests import digest
from engine.frostline.analysis import Analysis
from engine.frostline.fingerprint import FingerprintError
from engine.frostline.line import Cut, Line, Refused
from engine.frostline.search import find_cut
from engine.frostline.split import FrostTensor, Same, build_feeds, reshape_rows
from engine.frostline.traced import Compute, TracedError
from engine.graphs import dataflow
from engine.graphs.graph_variables import HOLDERS

v1 = tf.compat.v1

_AT_ONCE = 64  # the number of variables to read in one run
_PLACEHOLDERS = frozenset(["Placeholder", "PlaceholderV2", "PlaceholderWithDefault"])


class SessionGraph:
    """A live graph and its session as an engine.frostline.traced.Traced.

    A run fetches ``results``, tensors in any nesting, and runs ``effects``, further operations.
    """

    def __init__(self, built: TrainingGraph, session: Any, results: Any, effects: Sequence[Any] = ()) -> None:
        self.graph, self._built, self._session = built.graph, built, session
        self.inputs: Mapping[str, Any] = built.inputs
        given = {id(placeholder) for placeholder in self.inputs.values()}
        made = [op.outputs[0] for op in self.graph.get_operations() if op.type in _PLACEHOLDERS]
        self.others: Sequence[Any] = [placeholder for placeholder in made if id(placeholder) not in given]
        self.results: Sequence[Any] = tf.nest.flatten(results)
        self.effects = effects

    def handle(self, path: str, variable: Any) -> Any | None:
        """Finds a variable by path, since that of the selection may belong to another graph or to the engine."""
        own = self._built.variables.get(path)
        return None if own is None else own.op.outputs[0]

    def name(self, handle: Any) -> str:
        return str(handle.op.name)

    def outside(self, tensors: Sequence[Any], *, by_value: bool) -> dict[int, str]:
        held = [tensor for tensor in tensors if tensor.op.type in HOLDERS]
        if not by_value:
            return {id(tensor): f"variable {tensor.op.name}" for tensor in held}
        if unknown := [tensor.op.name for tensor in held if tensor.op not in self._variables]:
            raise TracedError(f"the frozen part reads {unknown[0]}, which is not in a collection of variables")
        found: dict[int, str] = {}
        for start in range(0, len(held), _AT_ONCE):  # each new set of fetches takes a session long to prepare
            some = held[start : start + _AT_ONCE]
            values = self._session.run([self._variables[tensor.op] for tensor in some])
            found |= {id(t): "variable " + digest("", value) for t, value in zip(some, values, strict=True)}
        return found

    def can_cut_at(self, tensor: Any) -> bool:
        """Whether a tensor can be fed: not inside the loops and branches of TF1's control flow."""
        return bool(self.graph.is_feedable(tensor) and self.graph.is_fetchable(tensor))

    def can_fetch(self, op: Any) -> bool:
        return bool(self.graph.is_fetchable(op))

    def run(self, tensors: Sequence[Any], feeds: Iterable[tuple[Any, Any]]) -> list[np.ndarray]:
        with self.graph.as_default():
            given = {id(tensor): tensor for tensor in list_kept(self.graph)}
            given |= {id(tensor): tf.constant(value) for tensor, value in feeds}
            copies = dataflow.copy_tensors(tensors, given)
        found: list[np.ndarray] = self._session.run(copies)
        return found

    def build_function(self, examples: Sequence[Any], tensors: Sequence[Any], effects: Sequence[Any]) -> Compute:
        fetched = [list(tensors), list(effects)]

        def compute(*given: Any) -> Sequence[Any]:
            feeds = dict(zip(examples, map(np.asarray, given), strict=True))
            found: Sequence[Any] = self._session.run(fetched, feeds)[0]
            return found

        return compute

    @cached_property
    def _variables(self) -> dict[Any, Any]:
        """Operation -> its variable."""
        with self.graph.as_default():
            return {variable.op: variable for variable in v1.global_variables() + v1.local_variables()}


class _Above:
    """A copy of the part above a line, in the same graph. Raises ValueError if it needs one of ``without``."""

    def __init__(
        self,
        analysis: Analysis,
        crossing: Sequence[FrostTensor],
        same: Same,
        *,
        wanted: Sequence[Any],
        effects: Sequence[Any] = (),
        without: Set[Any],
    ) -> None:
        here, kept = analysis.graph, list_kept(analysis.graph)
        with here.as_default():
            with tf.name_scope("fed"):
                self.inputs = {t.key: v1.placeholder(t.dtype, [None, *t.shape], name=t.key) for t in crossing}
                given = {id(placeholder) for placeholder in analysis.examples}
                feeds = {id(tensor): tensor for tensor in kept if id(tensor) not in given}
                feeds |= build_feeds(crossing, same, self.inputs)
                count = tf.shape(self.inputs[crossing[0].key])[0]
                feeds |= {id(tensor): value for tensor, value in analysis.shape_values(count, None)}
            scope = here.unique_name("above", mark_as_used=False)
            without = without | {tensor.op for tensor in kept}
            self.tensors = dataflow.copy_tensors(wanted, feeds, effects=effects, without=without, name=scope)
            self.ops = [here.get_operation_by_name(f"{scope}/{op.name}") for op in effects]

    def feeds(self, arrays: Mapping[str, Any]) -> dict[Any, Any]:
        """Returns placeholder -> array for the tensors that cross the line."""
        for key, placeholder in self.inputs.items():
            if key not in arrays:
                raise SessionError(f"batch: expected {key!r}; it has {', '.join(arrays)}")
            if not placeholder.shape.is_compatible_with(np.shape(arrays[key])):
                wanted = ", ".join(["B", *map(str, placeholder.shape[1:])])
                raise SessionError(f"{key}: got shape {list(np.shape(arrays[key]))}, expected [{wanted}]")
        return {placeholder: arrays[key] for key, placeholder in self.inputs.items()}


def list_kept(where: Any) -> list[Any]:
    """Returns the tensors of a graph that are never copied: variables and placeholders."""
    return [op.outputs[0] for op in where.get_operations() if op.type in HOLDERS | _PLACEHOLDERS]


class SessionLine(Line):
    """A training graph that was cut by ``cut_training_graph``; ``runs`` is what a step runs for a batch at the line.

    ``replace_images`` returns such batches: arrays for SessionLoop.step and SessionLoop.evaluate.
    """

    def __init__(self, found: Cut, built: TrainingGraph, session: Any) -> None:
        report = [value for name, value in built.runs.report.items() if name != "grad_norm"]
        super().__init__(found, list(dataflow.ancestors(tf.nest.flatten(report))))
        self._built, self._session = built, session
        analysis, runs = self._analysis, built.runs
        # what reads accumulators needs no images, so it stays as it is
        fetched, effects = tf.nest.flatten([runs.report, runs.weighted]), [runs.add or runs.train_op]
        same = {id(crossing.tensor): (number, crossing) for number, crossing in enumerate(self._crossing)}
        self._above = _Above(
            analysis, self.tensors, same, wanted=fetched, effects=effects, without=analysis.ops_below()
        )
        report, weighted = tf.nest.pack_sequence_as([runs.report, runs.weighted], self._above.tensors)
        (last,) = self._above.ops
        changed = {"train_op": last} if runs.add is None else {"add": last}
        self.runs = runs._replace(report=report, weighted=weighted, **changed)

    def feeds(self, arrays: Mapping[str, Any]) -> dict[Any, Any]:
        """Returns placeholder -> array for what replaces the images in a step.

        Raises SessionError if the batch lacks a tensor, or has it in another shape.
        """
        return self._above.feeds(arrays)

    @property
    def evaluation(self) -> Refused | None:
        """Why the evaluation cannot be fed at the line; None if it can."""
        return self._evaluated if isinstance(self._evaluated, Refused) else None

    def evaluated(self, arrays: Mapping[str, Any]) -> tuple[Any, dict[Any, Any]]:
        """Returns what an evaluation fetches, and what replaces the images in it.

        Raises SessionError as ``feeds`` does, and if the evaluation computes other tensors.
        """
        if isinstance(self._evaluated, Refused):
            raise SessionError(
                f"{self._evaluated.describe()}; evaluate on batches with {', '.join(map(repr, self.inputs))}"
            )
        found = tf.nest.pack_sequence_as(self._built.evaluated, self._evaluated.tensors)
        return found, self._evaluated.feeds(arrays)

    @cached_property
    def _evaluated(self) -> _Above | Refused:
        wanted = tf.nest.flatten(self._built.evaluated)
        found = self.match_evaluation(SessionGraph(self._built, self._session, wanted))
        if isinstance(found, Refused):
            return found
        other, same = found
        try:
            return _Above(other, self.tensors, same, wanted=wanted, without={given.op for given in other.examples})
        except ValueError:
            return self.refuse_without_images("evaluation")

    def build_bridge(self, lower: Line) -> Any:
        """As Line.build_bridge; the lower line may be that of another graph, whose tensors are compared by value."""
        try:
            same = lower.match_tensors(self._analysis, by_value=True)
        except FingerprintError as error:
            return Refused((str(error),))
        if isinstance(same, str):
            return self.refuse_lower(same)
        wanted = [crossing.tensor for crossing in self._crossing]
        try:
            above = _Above(
                self._analysis,
                lower.tensors,
                same,
                wanted=wanted,
                without={given.op for given in self._analysis.examples},
            )
        except ValueError:
            return self.refuse_without_images("the higher line")

        def between(values: Mapping[str, Any]) -> list[np.ndarray]:
            feeds = above.feeds({name: np.asarray(value) for name, value in values.items()})
            found = self._session.run(above.tensors, feeds)
            return [reshape_rows(value, c.shape) for value, c in zip(found, self._crossing, strict=True)]

        return between


def cut_training_graph(
    built: TrainingGraph, session: Any, *, images: str = "image", most_bytes: int | None = None
) -> SessionLine | Refused:
    """Finds the frost line of a training graph, and copies the part above it.

    The steps are cut, and the evaluation if that computes the same tensors. ``images`` is the name of the images in a
    batch; all other inputs are varying. At most ``most_bytes`` may cross the line per example; None sets no limit.
    Raises AnalysisError if the batch has no such name.
    """
    runs = built.runs
    effects = [op for op in (runs.clear, runs.add, runs.train_op) if op is not None]
    fetched = [tensor for tensor in (runs.report, runs.weighted, runs.norm) if tensor is not None]
    traced = SessionGraph(built, session, fetched, effects)
    found = find_cut(Analysis(traced, built.freezing.selection, (images,)), most_bytes=most_bytes)
    return found if isinstance(found, Refused) else SessionLine(found, built, session)
