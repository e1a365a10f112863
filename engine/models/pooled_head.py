"""A new head on the features of a graph from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from engine.models import layers
from engine.models.keras.heads import Head, HeadError
from engine.models.spec import name_heads

_FIRST_SITE = 1 << 16  # of random numbers: behind those of the graph


class PooledHead(tf.Module):
    """Pools features [B, C], [B, T, C] or [B, H, W, C], and computes logits [B, outputs].

    As for Keras backbones, hidden layers begin as in He et al. (arXiv:1502.01852), and the last one small (0.02). The
    shape ``features`` is that of an example. Raises HeadError if it has another rank, or an unknown length where one is
    needed.
    """

    def __init__(
        self, head: Head, features: tuple[int | None, ...], outputs: int, *, seed: int, dtype: Any, number: int = 0
    ) -> None:
        """``number`` tells the heads of several tasks apart."""
        super().__init__()
        if head.on_stages:
            raise HeadError(
                f"head={head.pool!r}: it needs a network with named stages, such as keras:MobileNetV2; expected gap"
            )
        size = math.prod(n or 0 for n in features) if head.pool == "flatten" else features[-1] if features else None
        if len(features) not in (1, 2, 3) or not size:
            known = ["B", *("?" if n is None else n for n in features)]
            raise HeadError(
                f"head={head.pool!r}: the features have shape {known}; expected 2 to 4 axes, and known lengths where they are "
                "not pooled"
            )
        self._pool = head.pool
        rng = np.random.default_rng([seed, number] if number else seed)
        self._steps: list[Callable[[Any, bool, Any], Any]] = []
        first = _FIRST_SITE + 256 * number
        for place, part in enumerate(head.parts):
            if isinstance(part, int):
                dense = layers.Dense(size, part, rng=rng, scale=math.sqrt(2.0 / size), dtype=dtype)
                setattr(self, f"hidden_{place}", dense)
                self._steps.append(_hidden(dense))
                size = part
            else:
                self._steps.append(_dropout(part, first + place))
        self.logits = layers.Dense(size, outputs, rng=rng, scale=0.02, dtype=dtype)

    def __call__(self, x: Any, *, training: bool, seeds: Any) -> Any:
        places = list(range(1, x.shape.rank - 1))
        if self._pool == "flatten":
            x = tf.reshape(x, [-1, math.prod(x.shape[1:])])
        elif places:
            x = tf.reduce_mean(x, axis=places) if self._pool == "gap" else tf.reduce_max(x, axis=places)
        for step in self._steps:
            x = step(x, training, seeds)
        return self.logits(x)


class TaskHeads(tf.Module):
    """A head for each of several tasks on the same features; it returns their logits by task."""

    def __init__(
        self, head: Head, features: tuple[int | None, ...], tasks: Mapping[str, int], *, seed: int, dtype: Any
    ) -> None:
        super().__init__()
        self._tasks: dict[str, PooledHead] = {}
        names = name_heads(tasks)
        for number, (task, outputs) in enumerate(tasks.items()):
            self._tasks[task] = PooledHead(head, features, outputs, seed=seed, dtype=dtype, number=number)
            self.__dict__[names[task]] = self._tasks[task]

    _TF_MODULE_IGNORED_PROPERTIES = frozenset(("_tasks", *tf.Module._TF_MODULE_IGNORED_PROPERTIES))

    def __call__(self, x: Any, *, training: bool, seeds: Any) -> Any:
        return {task: head(x, training=training, seeds=seeds) for task, head in self._tasks.items()}


def _hidden(dense: layers.Dense) -> Callable[[Any, bool, Any], Any]:
    return lambda x, training, seeds: tf.nn.relu(dense(x))


def _dropout(rate: float, site: int) -> Callable[[Any, bool, Any], Any]:
    def apply(x: Any, training: bool, seeds: Any) -> Any:
        return layers.dropout(x, rate, seeds=seeds, site=site) if training and rate else x

    return apply
