"""Variables under the names, and in the layouts, of another library: rule files read from right to left.

Nothing is needed but the rules and the values: unlike engine.porting.reverse, which changes a base. So every rule must
determine the shape of its tensor, and every tensor must be made in full.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from engine.porting.errors import PortError
from engine.porting.readers.source import TensorSource
from engine.porting.rules.inverse import infer_source_shape, invert_transforms, is_folded
from engine.porting.rules.language import Rule, Rules
from engine.porting.rules.transforms import Spec, Target, Transform, apply_transforms
from engine.text import join_words, listed

_MEAN, _COUNT = ".running_mean", ".num_batches_tracked"  # of a norm in PyTorch, which counts its batches


class Values(Protocol):
    """Named tensors to write: a TensorSource, or the variables of a model (engine.porting.whole_file)."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """What one variable gives to a tensor, by a rule."""

    path: str
    rule: Rule
    target: Target

    @property
    def folded(self) -> bool:
        return is_folded(self.rule.transforms)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Those of the rule, without a resize: a position embedding leaves with the grid that it has."""
        return tuple(transform for transform in self.rule.transforms if transform.name != "resize_grid")


class Outward:
    """The tensors of another library, read one at a time; ``names``, ``shape``, ``dtype`` and ``read`` are as of a TensorSource.

    Where the rules skip ``X.num_batches_tracked``, each norm of PyTorch gets one; it is 0, since nobody counted.
    ``left_out`` is variable -> the line that leaves it out on purpose, or why it has no value (``absent`` has these alone).
    ``folded`` are the variables, read so far, that are not zero and were subtracted from the tensor of another one.

    Args:
        values: the variables by path.
        paths: all paths of a variable that has several.
        absent: variables without a value, such as a head that the source does not have -> the reason; they are left out.
        known: variable -> the shape of its tensor, where the rules do not tell.
        under: what is put in front of the names, such as ``vit.``, except of those that begin with ``outside``.

    Raises PortError, which lists both sides, if a variable has no name, a rule that is not optional has no variable, or a
    tensor is not made in full, or by two variables.
    """

    def __init__(
        self,
        values: Values,
        rules: Rules,
        *,
        paths: Mapping[str, Sequence[str]] | None = None,
        absent: Mapping[str, str] | None = None,
        known: Mapping[str, tuple[int, ...]] | None = None,
        under: tuple[str, str] = ("", ""),
    ) -> None:
        self.rules, self.left_out, self.folded = rules, dict[str, str](), list[str]()
        self._values, self._under, self.absent = values, under, dict[str, str]()
        self._parts: dict[str, list[Part]] = {}
        self._specs: dict[str, Spec] = {}
        unnamed, used = [], set()
        if not values.names():
            raise PortError(f"names={rules.name}: there are no variables to name")
        for path in values.names():
            found = _find_rule(path, (paths or {}).get(path, (path,)), rules)
            if isinstance(found, str):
                self.left_out[path] = found
            elif absent and path in absent and not (found and is_folded(found[0].transforms)):
                self.absent[path] = self.left_out[path] = absent[path]
                used |= {found[0].where} if found else set()
            elif found is None:
                unnamed.append(f"{path} {list(values.shape(path))}")
            else:
                used.add(found[0].where)
                self._add(path, *found, (known or {}).get(path))
        idle = [
            f"{' + '.join(rule.sources)} ({rule.where}, from {rule.pattern.pattern})"
            for rule in rules.rules
            if not rule.optional and rule.where not in used
        ]
        if unnamed or idle:
            raise PortError(
                f"names={rules.name}: not all variables have a name there"
                + listed("variables without a name", unnamed)
                + listed("names without a variable", idle)
            )
        self._check_whole()
        norms = [name.removesuffix(_MEAN) for name in self._specs if name.endswith(_MEAN)]
        counted = [f"{norm}{_COUNT}" for norm in norms]
        skipped = [name for name in counted if any(line.pattern.fullmatch(name) for line in rules.skip)]
        self._counts = frozenset(skipped)
        self._specs |= dict.fromkeys(skipped, Spec((), np.dtype(np.int64)))

    def _add(self, path: str, rule: Rule, name: str, shape: tuple[int, ...] | None) -> None:
        before, outside = self._under
        name = name if outside and name.startswith(outside) else f"{before}{name}"
        own, dtype = self._values.shape(path), self._values.dtype(path)
        try:
            spec = Spec(shape or _source_shape(rule, own), dtype)
        except ValueError as error:
            raise PortError(
                f"{rule.where}: {path}: {error}, so the rule cannot be read backwards; for a built-in ViT, the model tells it "
                "(--target, or --run of apply-delta)"
            ) from None
        given = self._specs.setdefault(name, spec)
        if given != spec:
            other = self._parts[name][0].path
            raise PortError(
                f"{rule.where}: {path} and {other} make {name} with different shapes or dtypes: {list(spec.shape)} "
                f"{spec.dtype.name}, {list(given.shape)} {given.dtype.name}"
            )
        self._parts.setdefault(name, []).append(Part(path, rule, Target(own)))

    def _check_whole(self) -> None:
        """Raises PortError if a tensor is made by two variables, or only a part of it."""
        for name, parts in self._parts.items():
            whole = [part for part in parts if not part.folded]
            places = [str(part.rule.transforms[0]) for part in whole if part.rule.transforms]
            made = sum((_share(part.rule, self._specs[name]) for part in whole), Fraction(0))
            if made > 1 or (made == 1 < len(whole) and len(set(places)) < len(places)):
                raise PortError(f"{whole[-1].rule.where}: {join_words(p.path for p in whole)} are all {name}")
            if made < 1:
                raise PortError(
                    f"{parts[0].rule.where}: {join_words(p.path for p in parts)} make only a part of {name}"
                )

    def names(self) -> list[str]:
        return sorted(self._specs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._specs[name].dtype

    def parts(self, name: str) -> tuple[Part, ...]:
        """What makes a tensor; empty for ``num_batches_tracked``."""
        return tuple(self._parts.get(name, ()))

    def read(self, name: str) -> np.ndarray:
        """Returns the values of a tensor; raises PortError, which names the line, if its rule cannot be inverted."""
        spec = self._specs[name]
        whole = np.zeros(spec.shape, spec.dtype)
        for part in sorted(self.parts(name), key=lambda part: part.folded):
            value = self._values.read(part.path)
            if part.folded and value.any():
                self.folded += [] if part.path in self.folded else [part.path]
            given: Any = {"read": functools.partial(lambda whole, _: whole, whole)}
            try:
                (whole,) = invert_transforms(value, [spec], part.transforms, part.target, **given)
            except ValueError as error:
                raise PortError(f"{part.rule.where}: {part.path}: {error}") from None
        return whole

    def check_back(self, file: TensorSource) -> None:
        """Raises PortError unless a file holds these tensors, and the rules make every variable from it, bit for bit.

        A value from which another was subtracted comes back as it was written, and the other as zeros.
        """
        for name in self.names():
            array, parts = file.read(name), self.parts(name)
            if not parts:
                continue
            folded = [part.path for part in parts if part.folded and part.path in self.folded]
            if folded and array.tobytes() != np.ascontiguousarray(self.read(name)).tobytes():
                raise PortError(f"{file.path}: {name} was not written as it is")
            for part in parts:
                value = self._values.read(part.path)
                made = apply_transforms([array], part.transforms, part.target)
                made = np.ascontiguousarray(made.astype(value.dtype, copy=False))
                wanted = np.zeros_like(value) if part.folded else np.ascontiguousarray(value)
                if not (folded and not part.folded) and made.tobytes() != wanted.tobytes():
                    raise PortError(
                        f"{part.rule.where}: {part.path} would come back from {name} with other bits; nothing is written"
                    )


def _find_rule(path: str, paths: Sequence[str], rules: Rules) -> tuple[Rule, str] | str | None:
    """The rule that reads a variable, with the name of its tensor; or the line that leaves it out, or None."""
    found: list[tuple[Rule, str]] = []
    lines = [line.where for line in rules.fresh if any(line.pattern.fullmatch(each) for each in paths)]
    for rule in rules.rules:
        match = next((m for each in paths if (m := rule.pattern.fullmatch(each))), None)
        if match is None:
            continue
        names = rule.expand(match)
        if len(names) > 1:
            raise PortError(
                f"{rule.where}: {path}: `concat` does not tell how long each tensor is; split it into lines"
            )
        if r"\d+" in names[0]:
            raise PortError(f"{rule.where}: {path}: numbered shards do not tell how many there are; name one tensor")
        found.append((rule, names[0]))
    deciding = lines + [rule.where for rule, _ in found]
    if len(deciding) > 1:
        raise PortError(f"{deciding[1]}: this is a second rule for the variable {path}; the first is {deciding[0]}")
    return lines[0] if lines else found[0] if found else None


def _source_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor that a rule reads; raises ValueError if the transforms do not tell."""
    kept = [transform for transform in rule.transforms if transform.name != "resize_grid"]  # the grid is its own
    if kept and kept[0].name == "split":
        axis, parts, _ = kept[0].arguments
        part = infer_source_shape(shape, kept[1:])
        return tuple(length * parts if number == axis % len(part) else length for number, length in enumerate(part))
    return infer_source_shape(shape, kept)


def _share(rule: Rule, spec: Spec) -> Fraction:
    """The share of a tensor that a rule makes: it takes one of equal parts, or all."""
    first = rule.transforms[0] if rule.transforms else None
    return Fraction(1, first.arguments[1]) if first is not None and first.name == "split" else Fraction(1)
