"""What the metrics of an evaluation have measured: gathered over batches and workers, and made into figures."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.sizes import format_bytes
from engine.training.metric import Figure, Metric, kept_names
from engine.training.metric_names import MetricError

MOST_KEPT = 1 << 30  # bytes that the metrics of one evaluation keep on a worker
_WHOLE = 2.0**53  # up to this, whole numbers add up exactly in float64, in any order
Key = tuple[str, str]  # the name of a figure, and of a tensor that its metric measures


class Gathered:
    """What a worker has measured.

    The figures do not depend on how batches are divided among workers, to the bit: whole numbers, such as counts, add up
    exactly in any order, and all other sums are added in the order of the batches. So with several workers the latter are
    listed, until all are together; with one, they are added at once (``alone``).
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._whole: dict[Key, list[np.ndarray]] = {}  # one sum
        self._sums: dict[Key, list[np.ndarray]] = {}
        self._kept: dict[Key, list[np.ndarray]] = {}
        self._bytes = 0

    def add(self, measured: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Metric]) -> None:
        """Adds what the metrics measured of a batch: by the name of the figure, tensors by name.

        Raises:
            MetricError: a sum has another shape than before, or more than ``MOST_KEPT`` bytes are kept.
        """
        for name, tensors in measured.items():
            kept = kept_names(metrics[name])
            for tensor, value in tensors.items():
                array = value.numpy()
                if tensor in kept:
                    self._kept.setdefault((name, tensor), []).append(array)
                    self._count(name, array.nbytes)
                else:
                    self._add(name, tensor, array)

    def _add(self, name: str, tensor: str, array: np.ndarray) -> None:
        key = name, tensor
        for before in (*self._whole.get(key, ())[:1], *self._sums.get(key, ())[:1]):
            _check_shape(key, before, array)
        whole = bool((array == np.rint(array)).all() and (np.abs(array) < _WHOLE).all())
        found = (self._whole if whole else self._sums).setdefault(key, [])
        if found and (whole or self._alone):
            found[0] = found[0] + array
            return
        found.append(array)
        self._count(name, array.nbytes)

    def _count(self, name: str, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_KEPT:
            raise MetricError(
                f"metric {name}: the metrics of an evaluation would keep more than {format_bytes(MOST_KEPT)} in memory; leave "
                "it out, or evaluate fewer examples"
            )

    @property
    def names(self) -> set[str]:
        """The names of the figures that something was measured for."""
        return {name for part in (self._whole, self._sums, self._kept) for name, _ in part}

    def to_json(self) -> list[Any]:
        """As JSON values, with all bits."""
        return [
            [[*key, [_write(array) for array in arrays]] for key, arrays in part.items()]
            for part in (self._whole, self._sums, self._kept)
        ]

    @classmethod
    def read(cls, given: Sequence[Any]) -> Gathered:
        """What another worker's ``to_json`` wrote."""
        made = cls(alone=False)
        made._whole, made._sums, made._kept = (
            {(name, tensor): [_read(each) for each in arrays] for name, tensor, arrays in part} for part in given
        )
        return made

    @staticmethod
    def finalise(every: Sequence[Gathered], metrics: Mapping[str, Metric]) -> dict[str, Figure]:
        """The figures of what all workers, in their order, have measured; they are in the order of the metrics.

        Raises:
            MetricError: ``finalise`` of a metric raised an error, or returned no number.
        """
        together: dict[str, dict[str, np.ndarray]] = {}
        for number, part in enumerate(("_whole", "_sums", "_kept")):
            lists: dict[Key, list[np.ndarray]] = {}
            for own in every:
                for key, arrays in getattr(own, part).items():
                    lists.setdefault(key, []).extend(arrays)
            for key, arrays in lists.items():
                for array in arrays if number < 2 else ():
                    _check_shape(key, arrays[0], array)
                joined = np.concatenate(arrays) if number == 2 else _add_in_order(arrays)
                name, tensor = key
                before = together.setdefault(name, {}).get(tensor)
                together[name][tensor] = joined if before is None else before + joined
        return {name: make_figure(name, metric, together[name]) for name, metric in metrics.items() if name in together}


def make_figure(name: str, metric: Metric, sums: Mapping[str, np.ndarray]) -> Figure:
    """What ``finalise`` of a metric returns, as a float or a table; MetricError if it is neither, or an error was raised."""
    try:
        found = metric.finalise(sums)
    except InputError:
        raise
    except Exception as error:
        raise MetricError(f"metric {name}: finalise raised {type(error).__name__}: {error}") from error
    try:
        array = np.asarray(found)
    except ValueError:  # a list of lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iufb":
        raise MetricError(
            f"metric {name}: finalise returned {found!r}; expected a number (NaN where it is not defined)"
        )
    return float(array) if array.ndim == 0 else array.tolist()


def _add_in_order(arrays: Sequence[np.ndarray]) -> np.ndarray:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def _check_shape(key: Key, before: np.ndarray, now: np.ndarray) -> None:
    if before.shape != now.shape:
        raise MetricError(
            f"metric {key[0]}: {key[1]!r} has shape {list(before.shape)} for one batch and {list(now.shape)} for another; "
            "return a sum over the examples, or list its name in `kept`"
        )


def _write(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, list(array.shape), b64encode(array.tobytes()).decode()]


def _read(given: Sequence[Any]) -> np.ndarray:
    dtype, shape, text = given
    return np.frombuffer(b64decode(text), np.dtype(dtype)).reshape(shape)
