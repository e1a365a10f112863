"""Whole weights under the names of the file that they came from, for a file of the same kind."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.porting.readers.closing import Closing
from engine.porting.readers.tensor_source import TensorSource
from engine.porting.reverse import Reverse
from engine.porting.rules.detect import OWN, get_rules
from engine.porting.rules.inverse import infer_source_shape
from engine.porting.rules.language import Rules
from engine.porting.rules.transforms import Spec, Target, infer_spec
from engine.selection.variables import ModelVariables, NamedVariable


class WholeFile:
    """The tensors of a base with the values of a model, read one at a time: names, order and dtypes are the base's.

    A tensor that did not change keeps its bits, and one that no rule reads is copied, except what a run keeps besides
    weights (slots, averages, generators): it belongs to other values. The head has the model's shape. ``changed`` and
    ``dropped`` say what was read so far, and what is left out.
    """

    def __init__(self, base: TensorSource, variables: ModelVariables, rules: Rules) -> None:
        seen = WithHead(base, variables, rules)
        self._base, self._reverse = base, Reverse(variables, rules, seen)
        own = get_rules(OWN)
        made = set(self._reverse.names())
        rest = [name for name in seen.names() if name not in made]
        state = [name for name in rest if any(line.pattern.fullmatch(name) for line in own.skip)]
        self.dropped = tuple(state if rules.name == own.name else ())
        self._made = made
        self._names = [name for name in seen.names() if name not in self.dropped]

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reverse.shape(name) if name in self._made else self._base.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._reverse.dtype(name) if name in self._made else self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        return self._reverse.read(name) if name in self._made else self._base.read(name)

    @property
    def changed(self) -> list[str]:
        """The tensors read so far that differ from the base."""
        return list(self._reverse.changed)

    @property
    def rounded(self) -> list[str]:
        """The variables read so far that lost digits, since the base keeps them in a smaller dtype."""
        return list(self._reverse.rounded)


class WithHead(Closing):
    """A TensorSource like another one, but with the tensors of the head in the shapes that a model's head requires.

    A head with another number of outputs, or one that the base does not have, gets them from the rules, read backwards;
    they are zeros, in the base's dtype.
    """

    def __init__(self, base: TensorSource, variables: ModelVariables, rules: Rules) -> None:
        self.path: pathlib.Path = base.path
        self.checksums: bool = base.checksums
        self._base = base
        names = {rules.without_prefix(name): name for name in base.names()}
        kinds = collections.Counter(base.dtype(name) for name in names.values() if base.dtype(name).kind in "fV")
        usual = kinds.most_common(1)[0][0] if kinds else np.dtype(np.float32)
        self._specs: dict[str, Spec] = {}
        for entry in variables:
            if "head" in entry.groups:
                self._specs |= _fit_head(entry, rules, base, names, usual)

    def names(self) -> list[str]:
        return list(dict.fromkeys([*self._base.names(), *self._specs]))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].shape if name in self._specs else self._base.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._specs[name].dtype if name in self._specs else self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        return np.zeros(*self._specs[name]) if name in self._specs else self._base.read(name)

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.read(name)[start:stop] if name in self._specs else self._base.read_slice(name, start, stop)


def _fit_head(
    entry: NamedVariable, rules: Rules, base: TensorSource, names: Mapping[str, str], usual: np.dtype[Any]
) -> dict[str, Spec]:
    """The tensor of a variable of the head, where the base has none of its shape; nothing where the rules do not tell."""
    shape = tuple(entry.variable.shape)
    found: dict[str, Spec] = {}
    for rule in rules.rules:
        match = next((m for path in entry.paths if (m := rule.pattern.fullmatch(path))), None)
        if match is None or len(rule.sources) > 1:
            continue
        name = names.get(short := rule.expand(match, names)[0], short)
        held = name in names.values()
        if held:
            spec = Spec(base.shape(name), base.dtype(name))
            result = infer_spec([spec], rule.transforms, Target(shape, None)).spec
            if result is not None and result.shape == shape:
                continue
        try:
            found[name] = Spec(infer_source_shape(shape, rule.transforms), base.dtype(name) if held else usual)
        except ValueError:
            continue  # then the plan says that the head does not fit
    return found


class VariablesAsTensors:
    """The variables of a model under their paths, to be read like the tensors of a file."""

    def __init__(self, variables: ModelVariables) -> None:
        self._entries = variables.by_path()

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._entries[name].variable.dtype.as_numpy_dtype)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self._entries[name].variable.numpy())
