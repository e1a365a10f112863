"""Judges trained strategies on the part that had no say in any choice, as it is and through corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import Part, corruptions
from engine.data.batch_names import join_inputs
from engine.data.corruptions import Corruption
from engine.porting.deltas.interpolation import RATIOS, interpolate
from engine.recipes.config import FinetuneConfig
from engine.recipes.predictor import Predictor
from engine.recipes.stages import requested_phases, resolve_stages
from engine.selection.selection import Selection
from engine.study.quality.bench import Stand
from engine.study.quality.verdict import Judged
from engine.training import metrics
from engine.training.evaluation import Result

_KEPT = 1 << 30  # bytes of corrupted images that are kept for the next strategy


_ARRAYS = ("loss", "right", "shifted")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """What the judging part says of a strategy.

    Attributes:
        judged: of each example.
        facts: the figures, as the row of a strategy has them under "test" and "shifted".
    """

    judged: Judged
    facts: Mapping[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name in _ARRAYS if (value := getattr(self.judged, name)) is not None}

    @classmethod
    def read(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Judgement:
        """From what ``arrays`` and ``facts`` were kept as."""
        return cls(
            judged=Judged(loss=arrays["loss"], right=arrays.get("right"), shifted=arrays.get("shifted")), facts=facts
        )


class Judge:
    """Judges strategies on the test part, or on the evaluation part where there is none.

    Args:
        part, name: the examples, and "test" or "evaluation".
        corrupt, seed: the corruptions, and their seed.
        progress: called after each pass over the examples, with the passes that are done and that a strategy takes.
    """

    def __init__(
        self,
        part: Part,
        name: str,
        *,
        corrupt: Sequence[Corruption],
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.part, self.name = part, name
        self._corrupt, self._seed, self._progress = tuple(corrupt), seed, progress
        self._kept: dict[Corruption, Part] = {}

    def judge(self, stand: Stand, config: FinetuneConfig, values: Mapping[int, Mapping[str, np.ndarray]]) -> Judgement:
        """Judges one strategy.

        Args:
            config: that of one of its runs.
            values: for each seed, the values that training has changed.
        """
        predictor, selection = _predictor(stand), last_selection(config, stand)
        kind = stand.task.kind
        results: list[Result] = []
        rated: list[_Rated] = []
        moved: list[list[_Rated]] = []
        total, done = len(values) * (1 + len(self._corrupt)), 0
        for seed, changed in values.items():
            stand.put(seed, changed)
            batches = stand.eval_batches(config, self.part)
            result = stand.evaluator(selection, batches)  # the figures of the plain run, to the bit
            results.append(result)
            rated.append(_rate(_outputs(predictor, self.part), self.part.labels, kind))
            self._progress(done := done + 1, total)
            moved.append([])
            for corruption in self._corrupt:
                outputs = _outputs(predictor, self._corrupted(corruption))
                moved[-1].append(_rate(outputs, self.part.labels, kind))
                self._progress(done := done + 1, total)
        names = predictor.name_outputs(stand.task.model.outputs) if kind == "softmax" else ()
        facts: dict[str, Any] = {"test": self._describe(list(values), results, rated, names)}
        facts["shifted"] = self._describe_shifted(moved) if self._corrupt else None
        right = _stack([each.right for each in rated])
        shifted_by = [[one.loss if right is None else one.right for one in each] for each in moved]
        loss = np.stack([each.loss for each in rated])
        return Judgement(judged=Judged(loss=loss, right=right, shifted=self._average(shifted_by)), facts=facts)

    def _corrupted(self, corruption: Corruption) -> Part:
        """The part through a corruption; its images are kept in memory while they are few."""
        if corruption not in self._kept:
            found = corruptions.corrupted(self.part, *corruption, seed=self._seed)
            each = int(np.prod(found.image_shape)) * np.dtype(found.image_dtype).itemsize
            if each * len(found) * len(self._corrupt) > _KEPT:
                return found
            images = np.concatenate([found.read(some)["image"] for some in _pieces(len(found))])
            self._kept[corruption] = Part(images=images, labels=found.labels, index=np.arange(len(found)))
        return self._kept[corruption]

    def _average(self, values: Sequence[Sequence[np.ndarray | None]]) -> np.ndarray | None:
        """The mean over corruptions of each example's values, [seeds, n]; kinds count alike, as in ``corruptions.average``."""
        if not self._corrupt or any(one is None for each in values for one in each):
            return None
        kinds = [corruption.kind for corruption in self._corrupt]
        weights = np.array([1.0 / kinds.count(kind) / len(set(kinds)) for kind in kinds])
        return np.stack([np.tensordot(weights, np.stack(each), axes=1) for each in values])  # type: ignore[arg-type]

    def _describe(
        self, seeds: Sequence[int], results: Sequence[Result], rated: Sequence[_Rated], names: Sequence[str]
    ) -> dict[str, Any]:
        accuracies = [result.metrics.get("accuracy") for result in results]
        rows = [
            {"seed": seed, "accuracy": accuracy, "loss": result.loss}
            for seed, accuracy, result in zip(seeds, accuracies, results, strict=True)
        ]
        labels = self.part.labels
        right = _stack([each.right for each in rated])
        classes = []
        if right is not None and names:
            numbers = labels.reshape(len(labels)).astype(np.int64)
            for number, name in enumerate(names):
                if (mine := numbers == number).any():
                    classes.append(
                        {"name": name, "examples": int(mine.sum()), "accuracy": float(right[:, mine].mean())}
                    )
        return {
            "part": self.name,
            "examples": len(self.part),
            "accuracy": None if None in accuracies else float(np.mean(accuracies)),  # type: ignore[arg-type]
            "loss": float(np.mean([result.loss for result in results])),
            **_calibration(rated),
            "seeds": rows,
            "classes": classes,
        }

    def _describe_shifted(self, moved: Sequence[Sequence[_Rated]]) -> dict[str, Any]:
        each: list[dict[str, Any]] = []
        for number, corruption in enumerate(self._corrupt):
            rated = [ratings[number] for ratings in moved]
            right = _stack([one.right for one in rated])
            row: dict[str, Any] = {"kind": corruption.kind, "strength": corruption.strength}
            row["accuracy"] = None if right is None else float(right.mean())
            row["loss"] = float(np.mean([one.loss.mean() for one in rated]))
            row["calibration_error"] = _calibration(rated)["calibration_error"]
            each.append(row)
        names = ("accuracy", "loss", "calibration_error")
        columns = {name: [row[name] for row in each] for name in names}
        return {
            "each": each,
            "mean": {
                name: None if None in column else corruptions.average(self._corrupt, column)
                for name, column in columns.items()
            },
        }


def choose_ratio(
    stand: Stand, config: FinetuneConfig, seed: int, tuned: Mapping[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    """The share of the trained weights that does best on the evaluation part (WiSE-FT), and the weights at that ratio.

    The best one has the highest accuracy, then the lowest loss, as in ``engine.recipes.wise_ft.choose_ratio``.
    """
    base = {**stand.first, **stand.start_of(seed)}
    base = {path: base[path] for path in tuned}
    selection, batches = last_selection(config, stand), stand.eval_batches(config, stand.task.source.eval)
    ranked = []
    for ratio in RATIOS:
        stand.put(seed, interpolate(base, tuned, ratio))
        result = stand.evaluator(selection, batches)
        loss = result.loss if np.isfinite(result.loss) else np.inf
        accuracy = -np.inf if loss == np.inf else result.metrics.get("accuracy") or 0.0
        ranked.append((accuracy, -loss, -ratio))
    best = -max(ranked)[2]
    return best, interpolate(base, tuned, best)


def last_selection(config: FinetuneConfig, stand: Stand) -> Selection:
    """What the last phase of a run trains, with which the plain run is evaluated too."""
    return resolve_stages(config, stand.task, requested_phases(config, stand.task))[-1].selection


@dataclass(frozen=True, eq=False)
class _Rated:
    """What outputs say of each example: whether they are right, the confidence of the predicted class, and the loss."""

    right: np.ndarray | None
    confidence: np.ndarray | None
    loss: np.ndarray


def _rate(outputs: np.ndarray, labels: np.ndarray, loss: str) -> _Rated:
    losses = metrics.measure_losses(outputs, labels, loss)
    if loss == "mse":
        return _Rated(None, None, losses)
    if labels.ndim == 2 and labels.shape[1] > 1:  # an example may have several labels
        return _Rated(((outputs > 0) == (labels > 0.5)).mean(axis=1), None, losses)
    values = metrics.as_probabilities(outputs, loss)
    predicted = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(np.int64)
    right = predicted == labels.reshape(len(labels)).astype(np.int64)
    return _Rated(right.astype(np.float64), values[np.arange(len(values)), predicted], losses)


def _calibration(rated: Sequence[_Rated]) -> dict[str, float | None]:
    """The means over the seeds of both calibration errors; None without classes."""
    if any(each.confidence is None or each.right is None for each in rated):
        return {"calibration_error": None, "adaptive_calibration_error": None}
    pairs = [(each.confidence, each.right > 0.5) for each in rated]  # type: ignore[operator]
    return {
        "calibration_error": float(np.mean([metrics.measure_calibration(*pair) for pair in pairs])),  # type: ignore[arg-type]
        "adaptive_calibration_error": float(
            np.mean([metrics.measure_adaptive_calibration(*pair) for pair in pairs])  # type: ignore[arg-type]
        ),
    }


def _predictor(stand: Stand) -> Predictor:
    task = stand.task
    if stand.predictor is None:
        stand.predictor = Predictor(
            network=task.model.network,
            normalise=task.normalise,
            image_shape=task.source.image_shape,
            loss=task.kind,
            class_names=task.class_names,
            inputs=task.source.train.input_specs,
        )
    return stand.predictor


def _outputs(predictor: Predictor, part: Part) -> np.ndarray:
    """The outputs for all examples of a part, [n, C]."""
    each = (join_inputs(part.read(some)) for some in _pieces(len(part)))
    prepare = predictor.prepare if len(part.image_shape) == 3 and not part.inputs else lambda inputs: inputs
    found = [predictor.outputs(prepare(inputs)) for inputs in each]
    outputs = np.concatenate(found)
    predictor.probabilities(outputs)  # its complaint about values that are not finite
    return outputs


def _pieces(count: int, size: int = 64) -> list[np.ndarray]:
    return [np.arange(at, min(at + size, count)) for at in range(0, count, size)]


def _stack(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
    return None if any(value is None for value in values) else np.stack(values)  # type: ignore[arg-type]
