"""What is exported: a trained network, with everything that using and checking it requires."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from engine.data import Part
from engine.export.inputs import Inputs
from engine.export.outputs import Output
from engine.selection.variables import ModelVariables
from engine.training.losses import accepted_keywords
from engine.training.precision import widen

BATCH = 64  # examples


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained network to export.

    Attributes:
        model: the name of the model.
        network, variables: the network with its weights, and all its variables, named.
        inputs: what it is given, and how that is prepared for the network.
        outputs: what each output of the network means, by its task ("" for the only one).
        averaged: whether the weights are the averages of the run.
        trained: the paths of the variables that the run trained, statistics that moved included.
        single_precision: whether the variables and the computation are in float32.
        rebuild: builds the network anew, with initial weights, in float32.
        reads_files: whether images of the run were read from files as ``prepare_file`` reads them: cropped, in 8-bit colour or
            grey.
        examples, training: the part that exports are checked on, and the one that quantisation is calibrated on.
    """

    model: str
    network: Any
    variables: ModelVariables
    inputs: Inputs
    outputs: tuple[Output, ...]
    averaged: bool
    trained: tuple[str, ...]
    single_precision: bool
    rebuild: Callable[[], tuple[Any, ModelVariables]]
    examples: Part
    training: Part
    reads_files: bool = True

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """The specs of a batch of each input, with their names."""
        return list(self.inputs.specs.values())

    def name_inputs(self, given: Any) -> Mapping[str, Any]:
        """Inputs by name, given the only one, or each by its name already."""
        return given if isinstance(given, Mapping) else {next(iter(self.inputs.specs)): given}

    def read(self, part: Part, positions: np.ndarray) -> Any:
        """What the model is given for the examples at these positions: the only input, or each by its name."""
        found = self.inputs.read(part, positions)
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def bytes(self) -> int:
        """The memory of all variables."""
        return sum(entry.bytes for entry in self.variables)

    @property
    def several(self) -> bool:
        """Whether the network returns outputs by name."""
        return self.outputs[0].task != ""

    @property
    def data_names(self) -> dict[str, tuple[str, ...]] | tuple[str, ...] | None:
        """The names that the data give to the outputs: by task, where there are several; None if they name none."""
        if not self.several:
            return self.outputs[0].class_names
        return {each.task: each.class_names for each in self.outputs if each.class_names and each.loss != "mse"} or None

    def by_output(self, value: Callable[[Output], Any]) -> Any:
        """What a function says of the only output, or of each by its task."""
        return {each.task: value(each) for each in self.outputs} if self.several else value(self.outputs[0])

    def forward(self, *given: Any) -> dict[str, Any]:
        """Each output by its name [B, count], for the inputs in the order of ``specs``, in inference mode and in at least float32.

        Of a class for each pixel, it is [B, height, width, count].
        """
        return self.compute(self.inputs.prepare(dict(zip(self.inputs.specs, given, strict=True))))

    def compute(self, prepared: Any) -> dict[str, Any]:
        """The same for what the network takes."""
        given = {"training": False, "seeds": None}
        taken = accepted_keywords(self.network)
        found = self.network(prepared, **{name: given[name] for name in taken})
        return {each.name: widen(found[each.task] if self.several else found) for each in self.outputs}

    def in_float32(self) -> Subject:
        """The same weights in a network that computes in float32, which phones and other formats need."""
        if self.single_precision:
            return dataclasses.replace(self, inputs=self.inputs.in_float32())
        network, variables = self.rebuild()
        values = {entry.path: entry.variable.numpy() for entry in self.variables}
        for entry in variables:
            entry.variable.assign(values[entry.path].astype(entry.variable.dtype.as_numpy_dtype))
        return dataclasses.replace(
            self, network=network, variables=variables, inputs=self.inputs.in_float32(), single_precision=True
        )


def batches(positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yields batches of positions."""
    for start in range(0, len(positions), BATCH):
        yield positions[start : start + BATCH]


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` positions, spread evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
