"""The rule by which ``--auto_freeze`` decides which parts have stopped learning, and the state that it needs.

The plasticity of a part after an evaluation is how far its weights have moved since the evaluation before,

    p_i = ||w_i - w_(i-1)|| / ||w_(i-1)||

(2-norms over all weights of the part that train). A part has stalled if p was at most ``threshold`` times its largest value
so far at each of the last ``patience`` evaluations. The lowest part that trains is frozen when it has stalled, and with it
the parts above it that have stalled too, up to the first that has not.

AutoFreeze (arXiv:2102.01386) also measures how much a layer is updated between evaluations, and freezes layers from the
input on; Egeria (arXiv:2201.06227) waits until the plasticity of a layer, which it measures by activations, has stood still
at several evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import InputError, check_range
from engine.text import cut, nearest, parse_number

ON = "on"
ARRAYS = "auto_freeze/"  # what the names of the references begin with in a checkpoint
_OPTIONS = ("threshold", "patience")


class AutoFreezeError(InputError):
    """The text of --auto_freeze cannot be read, or its values are not valid."""


@dataclass(frozen=True, kw_only=True)
class AutoFreeze:
    """When a part has stalled.

    Attributes:
        threshold: the share of its largest plasticity to which a part must have fallen.
        patience: at how many evaluations in a row.

    Example:
        >>> AutoFreeze(threshold=0.5, patience=2).has_stalled([0.08, 0.06, 0.04, 0.03])
        True
        >>> AutoFreeze(threshold=0.5, patience=2).has_stalled([0.08, 0.04, 0.05, 0.03])
        False
    """

    threshold: float = 0.25
    patience: int = 2

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, above=0, below=1)
        check_range("patience", self.patience, 1)

    def has_stalled(self, plasticity: Sequence[float]) -> bool:
        """Whether a part has stalled, given its plasticity at each evaluation so far.

        One that has not moved at all yet has not stalled, and what is not finite shows nothing.
        """
        largest = max((value for value in plasticity if math.isfinite(value)), default=0.0)
        last = plasticity[-self.patience :]
        return len(last) == self.patience and largest > 0 and all(value <= self.threshold * largest for value in last)

    def count_stalled(self, parts: Iterable[Sequence[float]]) -> int:
        """The number of parts, from the lowest on, that have stalled without one between them that has not."""
        count = 0
        for plasticity in parts:
            if not self.has_stalled(plasticity):
                break
            count += 1
        return count


def parse_auto_freeze(text: str) -> AutoFreeze:
    """Reads ``on``, or ``threshold=R,patience=N`` or one of the two; raises AutoFreezeError.

    Example:
        >>> parse_auto_freeze("patience=3")
        AutoFreeze(threshold=0.25, patience=3)
    """
    shown = f"auto_freeze={cut(text)!r}"
    if text == ON:
        return AutoFreeze()
    values: dict[str, float] = {}
    for word in text.split(","):
        name, _, given = (each.strip() for each in word.partition("="))
        if name not in _OPTIONS:
            raise AutoFreezeError(
                f"{shown}: expected on, or threshold=R (above 0 and below 1) and patience=N (at least 1) separated by a "
                f"comma; leave the flag out to freeze nothing{nearest(name, (ON, *_OPTIONS))}"
            )
        if name in values:
            raise AutoFreezeError(f"{shown}: `{name}` is given twice")
        number = parse_number(given)
        if number is None or (name == "patience" and not (math.isfinite(number) and number == int(number))):
            what = "a number" if name == "threshold" else "a whole number"
            raise AutoFreezeError(f"{shown}: {name}={cut(given)!r} is not {what}")
        values[name] = number
    try:
        patience = {"patience": int(values.pop("patience"))} if "patience" in values else {}
        return AutoFreeze(**values, **patience)  # type: ignore[arg-type]
    except InputError as error:
        raise AutoFreezeError(f"{shown}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move of the frost line: after ``step`` steps, ``parts`` were frozen.

    Attributes:
        step: the number of steps.
        phase: the name of the phase that begins.
        parts: the parts that were frozen, the lowest first.
        plasticity, largest: for each of them, the last value and the largest one.
        cached: whether it was decided that the phase trains from cached features.
    """

    step: int
    phase: str
    parts: tuple[str, ...]
    plasticity: tuple[float, ...]
    largest: tuple[float, ...]
    cached: bool

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Move:
        """Raises TypeError or ValueError if the value is not that of ``to_json``."""
        given: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}
        move = cls(**given)
        counts = {len(each) for each in (move.parts, move.plasticity, move.largest)}
        if type(move.step) is not int or len(counts) != 1 or 0 in counts:
            raise ValueError("a move of the frost line is not valid")
        return move


@dataclass
class AutoFreezeState:
    """What a resume needs in order to decide as the run would have.

    Attributes:
        measured: for each evaluation after the first, the number of steps and the plasticity of each part that trained.
        moves: the moves of the frost line so far.
        reference: by path, the weights at the last evaluation, of the parts that train.
    """

    measured: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    reference: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def frozen(self) -> list[str]:
        """The parts that have been frozen, the lowest first."""
        return [part for move in self.moves for part in move.parts]

    def values(self, part: str) -> list[float]:
        """The plasticity of a part at each evaluation after the first."""
        return [plasticity[part] for _, plasticity in self.measured if part in plasticity]

    def to_json(self) -> dict[str, Any]:
        """What the text of a checkpoint keeps."""
        return {
            "measured": [[step, dict(plasticity)] for step, plasticity in self.measured],
            "moves": [move.to_json() for move in self.moves],
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the names and values of the references, as checkpoints keep them."""
        for path, value in self.reference.items():
            yield f"{ARRAYS}{path}", value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> AutoFreezeState:
        """What ``to_json`` and ``arrays`` have kept; raises LookupError, TypeError or ValueError if it is something else."""
        return cls(
            measured=[(int(step), {k: float(v) for k, v in found.items()}) for step, found in value["measured"]],
            moves=[Move.from_json(move) for move in value["moves"]],
            reference={name.removeprefix(ARRAYS): a for name, a in arrays.items() if name.startswith(ARRAYS)},
        )


def measure_plasticity(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The relative change of some arrays, as one vector: the norm of the difference over that of ``before``, in float64.

    Where ``before`` is all zeros, that of ``after`` takes its place, so that the change of a new part is 1.

    Example:
        >>> measure_plasticity([np.array([3.0, 4.0])], [np.array([3.0, 4.5])])
        0.1
    """

    def norm(arrays: Iterable[np.ndarray]) -> float:  # summed without BLAS, whose bits depend on the number of threads
        return math.sqrt(sum(float(np.sum(np.square(array.astype(np.float64)))) for array in arrays))

    moved = norm(new.astype(np.float64) - old.astype(np.float64) for old, new in zip(before, after, strict=True))
    scale = norm(before) or norm(after)
    return moved / scale if scale else 0.0
