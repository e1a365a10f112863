"""What numbers a run computes in, and the loss scale that float16 needs.

Variables, gradients and slots stay in ``variables``; models cast what they read to ``compute`` and do
norms and softmax, and losses are taken, in float32 at least (``wide``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.errors import InputError
from engine.text import nearest


class PrecisionError(InputError):
    """A precision that does not exist, or a loss scale outside its bounds."""


@dataclass(frozen=True)
class Precision:
    """Attributes:
    name: as in a flag, and as Keras names the dtype policy.
    variables: dtype of the variables that a model is made with.
    compute: dtype of the forward and backward pass.
    """

    name: str
    variables: Any
    compute: Any

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale: float16 has no small numbers below 6e-8."""
        return bool(self.compute == tf.float16)


PRECISIONS = {
    "float32": Precision("float32", tf.float32, tf.float32),
    "mixed_bfloat16": Precision("mixed_bfloat16", tf.float32, tf.bfloat16),
    "mixed_float16": Precision("mixed_float16", tf.float32, tf.float16),
    "float64": Precision("float64", tf.float64, tf.float64),
}


def parse(name: str) -> Precision:
    """A precision by name.

    Raises:
        PrecisionError: there is none of that name.
    """
    if name not in PRECISIONS:
        known = list(PRECISIONS)
        raise PrecisionError(f"precision={name!r}: known are {', '.join(known)}{nearest(name, known)}")
    return PRECISIONS[name]


def wide_type(dtype: Any) -> Any:
    """float32 for a 16-bit type, else the type itself: what sums are taken in."""
    return tf.float32 if dtype.size < 4 else dtype


def wide(x: Any) -> Any:
    """A 16-bit tensor as float32; any other as it is."""
    return tf.cast(x, wide_type(x.dtype))


@dataclass
class LossScale:
    """A dynamic loss scale (arXiv:1710.03740, section 3.2), moved once a step.

    Attributes:
        scale: what the loss is multiplied by, and gradients are divided by; a power of two, so that
            both are exact.
        good: finite steps since the scale last moved.
        floor, cap: the scale stays between them.
        growth_every: finite steps in a row after which the scale doubles.
    """

    scale: float = 2.0**15
    good: int = 0
    floor: float = 1.0
    cap: float = 2.0**24
    growth_every: int = 2000

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.scale <= self.cap:
            raise PrecisionError(
                f"loss scale {self.scale:g}: it must lie between floor {self.floor:g} and cap {self.cap:g}"
            )
        if self.growth_every < 1:
            raise PrecisionError(f"growth_every={self.growth_every}: it must be at least 1")

    def update(self, finite: bool) -> None:
        """Halves after a step that was not finite, doubles after enough that were."""
        if not finite:
            self.scale, self.good = max(self.floor, self.scale / 2), 0
            return
        self.good += 1
        if self.good >= self.growth_every:
            self.scale, self.good = min(self.cap, self.scale * 2), 0
