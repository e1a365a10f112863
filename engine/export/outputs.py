"""What each output of an exported network means, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.data.mask_geometry import choose_label_dtype
from engine.data.part import number_classes


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of a network.

    Attributes:
        task: its name; "" for the only one.
        prefix: what its tensors' names begin with, such as "species_"; "" for the only one.
        loss: what it is trained with: "softmax", "sigmoid" or "mse".
        count: the number of classes, labels or columns.
        class_names: their names, or those of the two classes of a single label; None if the data name none.
    """

    task: str = ""
    prefix: str = ""
    loss: str
    count: int
    class_names: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """What it is called in signatures: "logits", or "outputs" for the loss mse, behind the prefix."""
        return f"{self.prefix}{'outputs' if self.loss == 'mse' else 'logits'}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes that a prediction can be; empty where the outputs are not exclusive classes."""
        if self.loss == "softmax":
            return self.class_names or number_classes(self.count)
        if self.loss == "sigmoid" and self.count == 1:
            names = self.class_names or ()
            return {2: names, 1: (f"not {names[0]}", names[0])}.get(len(names), ("0", "1")) if names else ("0", "1")
        return ()

    @property
    def names(self) -> list[str]:
        """The names of all that it tells."""
        return list(self.labels or self.class_names or ())

    def describe(self, outputs: Any, class_names: Any = None) -> dict[str, Any]:
        """What a prediction consists of, by name, given the outputs [B, ..., count].

        Probabilities, unless the loss is mse. Of classes, also their names ("class"), looked up in ``class_names``; of a class
        for each pixel, their numbers ("mask"), uint8 [B, height, width].
        """
        if self.loss == "mse":
            return {self.name: outputs}
        chances = tf.nn.softmax(outputs) if self.loss == "softmax" else tf.sigmoid(outputs)
        found = {self.name: outputs, f"{self.prefix}probabilities": chances}
        if self.labels and outputs.shape.rank == 4:
            found[f"{self.prefix}mask"] = tf.cast(self.choose(outputs), tf.as_dtype(choose_label_dtype(self.count)))
        elif self.labels and class_names is not None:
            found[f"{self.prefix}class"] = tf.gather(class_names, self.choose(outputs))
        return found

    def choose(self, outputs: Any) -> Any:
        """The number of the class that each row, or each pixel, of outputs stands for; only where there are ``labels``."""
        return tf.argmax(outputs, axis=-1) if self.count > 1 else tf.cast(outputs[:, 0] > 0, tf.int64)


def name_arguments(paths: Sequence[str]) -> dict[str, str]:
    """A name for each path that an argument can have: letters, digits and underscores, each once.

    Example:
        >>> name_arguments(["head/kernel", "head kernel"])
        {'head/kernel': 'head_kernel', 'head kernel': 'head_kernel_2'}
    """
    found: dict[str, str] = {}
    for path in paths:
        base = re.sub(r"\W", "_", path, flags=re.ASCII)
        base = name = base if base[:1].isalpha() else f"v_{base}"
        count = 2
        while name in found.values():
            name, count = f"{base}_{count}", count + 1
        found[path] = name
    return found
