"""The contracts that gpu_check holds a device to: each returns what was found, and its bound.

They are those of docs/guarantees.md, on small networks: E1, E2 and E5 on the device itself, and for E3 its engine side, the
engine on the device against the engine on the CPU, whose agreement with the TF1 methods the tests hold.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from engine.models import build_model
from engine.selection.proof import FreezeProof
from engine.selection.selection import select
from engine.training import checkpoint, losses, optimizers
from engine.training.precision import LossScale
from engine.training.step import TrainStep

LOSS, GRADIENT, TRAJECTORY = 1e-6, 5e-6, 1e-10
_SIZE, _PART, _STEPS, _SIDE = 7, 3, 10, 16  # examples of a step, of a micro-batch; steps in float64; pixels
_VIT = ("vit:mini,depth=2,dropout=0.1,drop_path=0.1", "@blocks[-1:] @head !@norm")
_CNN = ("cnn:mini", "stages/[23]/.* @head")


class Side:
    """A network and its step, placed on a device ("" for where TensorFlow would place it)."""

    def __init__(self, kind: tuple[str, str], *, dtype: Any, xla: bool, place: str = "", **settings: Any) -> None:
        self._place = place
        compute = settings.pop("compute", None)
        with self._placed():
            shape = (_SIDE, _SIDE, 1)
            network = build_model(kind[0], image_shape=shape, outputs=4, dtype=dtype, compute=compute).network
            self.selection = select(network, kind[1])
            optimizer = optimizers.AdamW(weight_decay=0.05, clip_norm=0.5)
            jit_compile = "on" if xla else "off"
            self.step = TrainStep(losses.supervised_loss(network), optimizer, jit_compile=jit_compile, **settings)
        self._dtype = np.float64 if dtype == tf.float64 else np.float32

    def _placed(self) -> contextlib.AbstractContextManager[Any]:
        return tf.device(self._place) if self._place else contextlib.nullcontext()

    def train(self, numbers: Sequence[int], *, bad: Sequence[int] = ()) -> list[Any]:
        """Trains steps by their numbers, which decide their batches; the pixels of ``bad`` ones are not finite."""
        found = []
        for number in numbers:
            rng = np.random.default_rng(number)
            batch = {
                "image": rng.standard_normal((_SIZE, _SIDE, _SIDE, 1)).astype(self._dtype),
                "label": rng.integers(0, 4, _SIZE).astype(np.int32),
                "weight": (0.1 + rng.random(_SIZE)).astype(self._dtype),
                "seeds": rng.integers(0, 2**31, (_SIZE, 2)).astype(np.int32),
            }
            if number in bad:
                batch["image"][3, 0, 0, 0] = np.inf
            with self._placed():
                found.append(self.step(self.selection, batch, learning_rate=1e-3))
        return found

    def gradient(self) -> np.ndarray:
        """The gradient of the first step, up to a factor."""
        return _joined([self.step.slots.values[entry.path]["m"] for entry in self.selection.trained])

    def weights(self) -> np.ndarray:
        return _joined([entry.variable for entry in self.selection.trained])

    def bits(self) -> dict[str, bytes]:
        """Every variable, slot and average."""
        held = {entry.path: entry.variable.numpy().tobytes() for entry in self.selection.variables}
        return held | {name: array.tobytes() for name, array in self.step.arrays()}


def check_e1(*, xla: bool) -> list[dict[str, Any]]:
    """E1: what is frozen keeps every bit, and a step that is not finite changes nothing at all."""
    kept = Side(
        _CNN,
        dtype=tf.float32,
        xla=xla,
        compute=tf.float16,
        micro_batch_size=_PART,
        loss_scale=LossScale(2.0**10),
        ema=0.9,
    )
    proof = FreezeProof.begin(kept.selection)
    kept.train([0])
    before = kept.bits()
    (skipped,) = kept.train([1], bad=[1])
    changed = sum(before[name] != bits for name, bits in kept.bits().items())
    kept.train([2])
    return [
        _row("frozen variables that changed", len(proof.changed(kept.selection)), 0),
        _row("variables and slots changed by a step that is not finite", changed if skipped.skipped else -1, 0),
    ]


def check_e2(*, xla: bool) -> list[dict[str, Any]]:
    """E2: micro-batches, of which the last is shorter, are one batch."""
    gradients, weights = [], []
    for compiled, size in ((False, None), (xla, _PART)):
        side = Side(_VIT, dtype=tf.float32, xla=compiled, micro_batch_size=size)
        side.train([0])
        gradients.append(side.gradient())
        side = Side(_VIT, dtype=tf.float64, xla=compiled, micro_batch_size=size)
        side.train(range(_STEPS))
        weights.append(side.weights())
    return [
        _row("gradient of a step in float32", _relative(*gradients), GRADIENT),
        _row(f"weights after {_STEPS} steps in float64", _relative(*weights), TRAJECTORY),
    ]


def check_e3(*, xla: bool) -> list[dict[str, Any]]:
    """E3, its engine side: the engine on the device is the engine on the CPU."""
    found: dict[str, list[Any]] = {"loss": [], "gradient": [], "weights": []}
    for compiled, place in ((False, "/CPU:0"), (xla, "")):
        side = Side(_VIT, dtype=tf.float32, xla=compiled, place=place)
        (result,) = side.train([0])
        found["loss"].append(np.array([float(result.loss)]))
        found["gradient"].append(side.gradient())
        side = Side(_VIT, dtype=tf.float64, xla=compiled, place=place)
        side.train(range(_STEPS))
        found["weights"].append(side.weights())
    return [
        _row("loss of the first step, to the CPU's", _relative(*found["loss"]), LOSS),
        _row("its gradient, to the CPU's", _relative(*found["gradient"]), GRADIENT),
        _row(f"weights after {_STEPS} steps in float64, to the CPU's", _relative(*found["weights"]), TRAJECTORY),
    ]


def check_e5(*, xla: bool) -> list[dict[str, Any]]:
    """E5: a step that is saved and restored goes on with the bits of one that was not."""
    settings: dict[str, Any] = {"dtype": tf.float32, "xla": xla, "micro_batch_size": _PART, "ema": 0.9}
    whole = Side(_VIT, **settings)
    whole.train(range(4))
    first = Side(_VIT, **settings)
    first.train(range(2))
    second = Side(_VIT, **settings)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        given: dict[str, Any] = {"variables": first.selection.variables, "arrays": first.step.arrays}
        saved = checkpoint.save(pathlib.Path(folder), 2, state={"step": first.step.state()}, **given)
        read = checkpoint.read(saved)
    own = second.selection.variables
    checkpoint.restore(read, own)
    second.step.restore(own, read.state["step"], read.arrays)
    second.train(range(2, 4))
    other = second.bits()
    return [_row("variables, slots and averages that differ", sum(other[n] != b for n, b in whole.bits().items()), 0)]


CONTRACTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "E1": check_e1,
    "E2": check_e2,
    "E3": check_e3,
    "E5": check_e5,
}


def _row(what: str, found: float, bound: float) -> dict[str, Any]:
    return {"what": what, "found": float(found), "bound": bound, "holds": bool(0 <= found <= bound)}


def _joined(variables: Sequence[Any]) -> np.ndarray:
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in variables])


def _relative(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
