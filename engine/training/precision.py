"""The dtypes that a run computes in, and the loss scale that float16 needs.

Variables, gradients and slots have the dtype ``variables``. Models compute in ``compute``, except that normalisation,
softmax and losses are computed in at least float32 (``widen``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.errors import InputError
from engine.text import nearest


class PrecisionError(InputError):
    """A precision is unknown, or a loss scale is out of range."""


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run, by names, which need no TensorFlow. ``name`` is also that of the Keras dtype policy."""

    name: str
    variables_name: str
    compute_name: str

    @property
    def variables(self) -> Any:
        """The dtype of a model's variables."""
        return _dtype(self.variables_name)

    @property
    def compute(self) -> Any:
        """The dtype of the forward and backward pass."""
        return _dtype(self.compute_name)

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale: float16 has no small numbers below 6e-8."""
        return self.compute_name == "float16"


PRECISIONS = {
    "float32": Precision("float32", "float32", "float32"),
    "mixed_bfloat16": Precision("mixed_bfloat16", "float32", "bfloat16"),
    "mixed_float16": Precision("mixed_float16", "float32", "float16"),
    "float64": Precision("float64", "float64", "float64"),
}


AUTO = "auto"  # of a run: chosen by measurements (engine.recipes.auto_precision)


def _dtype(name: str) -> Any:
    import tensorflow as tf

    return tf.as_dtype(name)


def parse(name: str, *, auto: bool = False) -> Precision:
    """Returns the precision of a name; raises PrecisionError if it is unknown. ``auto`` says that it may be "auto" as well."""
    if name not in PRECISIONS:
        known = [*PRECISIONS, *([AUTO] if auto else [])]
        raise PrecisionError(f"precision={name!r}: expected one of {', '.join(known)}{nearest(name, known)}")
    return PRECISIONS[name]


def wide_type(dtype: Any) -> Any:
    """Returns the dtype for sums: float32 for a 16-bit dtype, else the dtype itself."""
    return _dtype("float32") if dtype.size < 4 else dtype


def widen(x: Any) -> Any:
    """Casts a 16-bit tensor to float32, and returns any other unchanged."""
    import tensorflow as tf

    return tf.cast(x, wide_type(x.dtype))


@dataclass
class LossScale:
    """A dynamic loss scale for models that compute in float16 (arXiv:1710.03740, section 3.2), adjusted once per step.

    It halves after a step with a gradient that is not finite, and doubles after ``growth_every`` finite steps.

    Attributes:
        scale: the factor on the loss, by which gradients are then divided; a power of two, so that both are exact.
        good: the number of finite steps since the scale last changed.
        floor, cap: the limits of the scale.
        growth_every: the number of consecutive finite steps after which the scale doubles.

    Example:
        >>> from engine import LossScale
        >>> scale = LossScale(scale=8.0)
        >>> scale.update(finite=False)
        >>> scale.scale
        4.0
    """

    scale: float = 2.0**15
    good: int = 0
    floor: float = 1.0
    cap: float = 2.0**24
    growth_every: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.scale <= self.cap:
            raise PrecisionError(
                f"loss scale {self.scale:g}: expected a number from floor={self.floor:g} to cap={self.cap:g}"
            )
        if self.growth_every < 1:
            raise PrecisionError(f"growth_every={self.growth_every}: expected at least 1")

    def update(self, finite: bool) -> None:
        """Adjusts the scale after a step, given whether the step was finite."""
        if not finite:
            self.scale, self.good = max(self.floor, self.scale / 2), 0
            return
        self.good += 1
        if self.good >= self.growth_every:
            self.scale, self.good = min(self.cap, self.scale * 2), 0
