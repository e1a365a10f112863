"""Compares an export with its model on real examples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data.part import IGNORED, Part
from engine.data.tasks import has_label, view_part
from engine.export.outputs import Output
from engine.export.subject import Subject, batches, spread

_TIMED = 30  # calls


class ExportError(RuntimeError):
    """An export failed, or is not what the model is. Nothing is written."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An export beside its model.

    Attributes:
        examples: the number of real examples.
        largest_difference: the largest absolute difference of an output; of several outputs, of that which differs most.
        scale: the largest absolute output of the model, or 1 if that is larger.
        agreement: the share of examples to which both give the same class, or of pixels; None without classes.
        accuracy, model_accuracy: the share of right classes of both, where there is a label that counts; None without classes.
        milliseconds, model_milliseconds: the median time for a single example, by both, on this machine.
        tasks: of several outputs, the comparison of each, and no agreement or accuracy of all together.
    """

    examples: int
    largest_difference: float
    scale: float
    agreement: float | None
    accuracy: float | None
    model_accuracy: float | None
    milliseconds: float | None = None
    model_milliseconds: float | None = None
    tasks: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def relative(self) -> float:
        return self.largest_difference / self.scale

    def to_json(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if name != "tasks"}
        return found | ({"tasks": {name: each.to_json() for name, each in self.tasks.items()}} if self.tasks else {})


class _Tally:
    """What is known of one output so far."""

    def __init__(self, output: Output, part: Part, what: str) -> None:
        self._output, self._what = output, f"{what}: output {output.task!r}" if output.task else what
        self._part = view_part(part, output.task) if output.task else part
        self._present = has_label(self._part)
        self._worst, self._scale, self._same, self._seen = 0.0, 1.0, 0, 0
        self._right, self._own_right, self._counted = 0, 0, 0

    def add(self, expected: np.ndarray, found: np.ndarray, positions: np.ndarray) -> None:
        """Counts what the model gives and what the export gives; ExportError if the latter has another shape or is not finite."""
        if found.shape != expected.shape:
            raise ExportError(
                f"{self._what}: it gives outputs of shape {list(found.shape)}; the model, {list(expected.shape)}"
            )
        difference = float(np.abs(found.astype(np.float64) - expected).max())
        if not np.isfinite(difference):
            raise ExportError(
                f"{self._what}: its outputs are not finite numbers, or the model's are not; nothing is written"
            )
        self._worst, self._scale = max(self._worst, difference), max(self._scale, float(np.abs(expected).max()))
        if not self._has_classes:
            return
        chosen, own = (self._output.choose(tf.constant(each)).numpy() for each in (found, expected))
        self._same, self._seen = self._same + int((chosen == own).sum()), self._seen + chosen.size
        labels, counted = self._part.labels[positions], self._present[positions]
        if self._part.dense:
            counted = counted[:, None, None] & (labels != IGNORED)
        self._right += int((chosen == labels)[counted].sum())
        self._own_right += int((own == labels)[counted].sum())
        self._counted += int(counted.sum())

    def compare(self, examples: int, bound: float | None) -> Comparison:
        """The comparison; ExportError if an output differs by more than ``bound``, relative to the scale."""
        if bound is not None and self._worst > bound * self._scale:
            raise ExportError(
                f"{self._what}: an output differs from the model's by {self._worst:.3g}, and at most {bound * self._scale:.3g} is "
                "allowed; nothing is written"
            )
        known = self._has_classes and self._counted > 0
        return Comparison(
            examples=examples,
            largest_difference=self._worst,
            scale=self._scale,
            agreement=self._same / self._seen if self._has_classes else None,
            accuracy=self._right / self._counted if known else None,
            model_accuracy=self._own_right / self._counted if known else None,
        )

    @property
    def _has_classes(self) -> bool:
        return bool(self._output.labels) and (self._part.labels.ndim == 1 or self._part.dense)


def compare(
    subject: Subject,
    run: Callable[[np.ndarray], Any],
    *,
    most: int | None = None,
    bound: float | None,
    what: str,
) -> Comparison:
    """Runs an export beside the model on the examples; each output is compared by itself.

    Args:
        run: a batch of what the model is given (``Subject.read``) -> the only output, or each by its name.
        most: the largest number of examples; None takes all.
        bound: the largest difference allowed, relative to ``Comparison.scale``; None allows any finite one.
        what: the export, for messages.

    Raises ExportError if the outputs differ by more than that, are not finite where the model's are, have another shape, or
    one is missing.
    """
    expect = _expect(subject)
    tallies = {output.name: _Tally(output, subject.examples, what) for output in subject.outputs}
    positions = spread(len(subject.examples), len(subject.examples) if most is None else most)
    for chosen in batches(positions):
        expected, found = expect(chosen), name_found(subject, run(subject.read(subject.examples, chosen)))
        if missing := expected.keys() - found.keys():
            raise ExportError(f"{what}: it has no output {sorted(missing)[0]!r}, only {', '.join(sorted(found))}")
        for name, tally in tallies.items():
            tally.add(expected[name].numpy(), np.asarray(found[name]), chosen)
    each = {output.task: tallies[output.name].compare(len(positions), bound) for output in subject.outputs}
    if not subject.several:
        return each[""]
    worst = max(each.values(), key=lambda comparison: comparison.relative)
    return replace(worst, agreement=None, accuracy=None, model_accuracy=None, tasks=each)


def _expect(subject: Subject) -> Callable[[np.ndarray], Mapping[str, Any]]:
    """A function from positions to what the model gives for the examples, from the very arrays that the run's network took.

    So what the export does to its inputs is compared too.
    """
    inputs, forward = subject.inputs, _trace(subject)
    if not inputs.own:
        return lambda chosen: forward(*_tensors(subject, subject.read(subject.examples, chosen)))
    compute = tf.function(subject.compute, autograph=False, reduce_retracing=True)
    return lambda chosen: compute(tf.nest.map_structure(tf.constant, inputs.read_own(subject.examples, chosen)))


def _trace(subject: Subject) -> Any:
    return tf.function(lambda *given: subject.forward(*given), input_signature=subject.specs, autograph=False)


def _tensors(subject: Subject, given: Any) -> list[Any]:
    named = subject.name_inputs(given)
    return [tf.constant(named[name]) for name in subject.inputs.specs]


def name_found(subject: Subject, found: Any) -> Mapping[str, Any]:
    """What an export gave, by the names of outputs."""
    return found if isinstance(found, Mapping) else {subject.outputs[0].name: found}


def time_single(subject: Subject, run: Callable[[Any], Any]) -> float:
    """The median time in milliseconds in which ``run`` answers for a batch of one example."""
    given = subject.read(subject.examples, np.arange(1))
    run(given)
    taken = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        run(given)
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def time_model(subject: Subject) -> float:
    """The median time in milliseconds in which the model itself answers for a batch of one example."""
    forward = _trace(subject)
    return time_single(subject, lambda given: [each.numpy() for each in forward(*_tensors(subject, given)).values()])
