"""Finds the fused cells of TensorFlow 1 and the recurrent layers of Keras that they become.

| cell of TensorFlow 1 | kernel, bias | gates | in Keras |
|---|---|---|---|
| BasicLSTMCell, LSTMCell, LSTMBlockCell | [inputs + units, 4 units], [4 units] | i, j, f, o; 1 is added to f as it runs | LSTM: i, f, c, o |
| CudnnCompatibleLSTMCell | as above | i, j, f, o; nothing is added | LSTM |
| GRUCell, GRUBlockCell | gates: [inputs + units, 2 units], [2 units]; candidate: [inputs + units, units], [units] | reset, update; candidate | GRU(reset_after=False): update, reset, candidate |
| BasicRNNCell | [inputs + units, units], [units] | | SimpleRNN |

Keras has one kernel for the inputs and another for the state. A cell is one unit on both sides while layers are paired,
and its line is then divided. A cell that Keras' layers cannot compute (with peepholes, a projection) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from engine.porting.proposals.proposal import Line
from engine.porting.proposals.units import Item, Unit
from engine.porting.proposals.words import Token, canonical_words, without_output

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_SAYING = frozenset({"lstm", "gru", "rnn", "cell", "recurrent", "blstm", "bilstm", "bigru", "birnn"})
_BEYOND_KERAS = frozenset({"diag", "projection", "project"})  # peepholes (w_f_diag) and num_proj
_PAIRS = {"gates": "candidate", "ru": "c"}  # GRUCell; GRUBlockCell
_ADDS_NOTHING = frozenset({"cudnn", "compatible"})
_SURE_OF_THE_FORGET_BIAS = 0.85  # where no graph says it: its default is 1, and a few programs choose another


class Cell(NamedTuple):
    """A recurrent layer of the model."""

    kind: str
    inputs: int
    units: int
    kernel: Item
    recurrent: Item
    bias: Item

    @property
    def variables(self) -> tuple[Item, ...]:
        return self.kernel, self.recurrent, self.bias

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.kind, self.inputs + self.units, self.units


class Fused(NamedTuple):
    """A cell of the file: its kernels and biases, which are joined along their last axis.

    ``beyond`` is a variable of it that Keras' layers do not have, None if there is none.
    """

    kind: str
    kernels: tuple[Item, ...]
    biases: tuple[Item, ...]
    adds_forget_bias: bool
    beyond: str | None

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.kind, self.kernels[0].shape[0], sum(item.shape[1] for item in self.kernels) // _GATES[self.kind]


class Cells(NamedTuple):
    """The units of both sides, with one for each cell, and the cells by the name of their kernel.

    ``notes`` is a variable of the model -> why no cell of the file becomes it.
    """

    sources: list[Unit]
    targets: list[Unit]
    fused: Mapping[str, Fused] = MappingProxyType({})
    layers: Mapping[str, Cell] = MappingProxyType({})
    notes: Mapping[str, str] = MappingProxyType({})


def join_cells(sources: Sequence[Unit], targets: Sequence[Unit]) -> Cells:
    """Makes each cell of either side one unit, where the other side has one of its size."""
    layers = {place: cell for place in range(len(targets)) if (cell := _layer(targets, place)) is not None}
    kernels = {
        unit.items["kernel"].shape for n, unit in enumerate(targets) if "kernel" in unit.items and n not in layers
    }
    found = _fused(sources, {cell.shape[1:] for cell in layers.values()}, kernels)
    here = {cell.shape: cell for cell in found.values()}
    unfit = {n: reason for n, cell in layers.items() if (reason := _unfit(cell, here.get(cell.shape)))}
    foreign = [
        each
        for each in _foreign(sources)
        if any(
            cell.kind == each.kind and cell.units == each.units and cell.shape not in here for cell in layers.values()
        )
    ]
    for each in foreign:
        unfit |= {
            n: _beyond_keras(each.beyond)
            for n, cell in layers.items()
            if cell.kind == each.kind and cell.units == each.units and cell.shape not in here
        }
    paired = {n: cell for n, cell in layers.items() if n not in unfit and cell.shape in here}
    there = {cell.shape for n, cell in layers.items() if n in paired or n in unfit}
    found = {n: cell for n, cell in found.items() if cell.shape in there}
    ready = {cell.shape for cell in paired.values()}
    parts = {item.name for cell in found.values() for item in (*cell.kernels, *cell.biases)}
    parts |= {name for each in foreign for name in each.names}
    parts |= {item.name for n in (*paired, *unfit) for item in layers[n].variables}
    left = [
        _joined(unit, found[n].kernels, found[n].biases, found[n].kind) if n in found else unit
        for n, unit in enumerate(sources)
        if (found[n].shape in ready if n in found else unit.main.name not in parts)
    ]
    right = [
        _joined(unit, paired[n].variables[:2], paired[n].variables[2:], paired[n].kind, along=0)
        if n in paired
        else unit
        for n, unit in enumerate(targets)
        if n in paired or unit.main.name not in parts
    ]
    return Cells(
        [replace(unit, position=n) for n, unit in enumerate(left)],
        [replace(unit, position=n) for n, unit in enumerate(right)],
        {cell.kernels[0].name: cell for cell in found.values()},
        {cell.kernel.name: cell for cell in paired.values()},
        {item.name: reason for n, reason in unfit.items() for item in layers[n].variables},
    )


def _unfit(cell: Cell, fused: Fused | None) -> str | None:
    """Returns why a layer cannot compute what a cell of its size computes; None if it can, or there is none."""
    if fused is not None and fused.beyond is not None:
        return _beyond_keras(fused.beyond)
    if fused is not None and len(cell.bias.shape) == 2:
        return "a GRUCell of TensorFlow 1 is a GRU with reset_after=False; build the model with that"
    return None


def _beyond_keras(name: str) -> str:
    return (
        f"the cell in the file has {name}, which the layers of Keras do not have; write a layer that computes the same into a "
        "model of your own (py:module:factory), and a rule for each of its variables"
    )


def divide_line(
    cell: Cell, fused: Fused, kernel: Line, bias: Line, forget_biases: Mapping[str, float | None]
) -> list[Line]:
    """Returns the lines of a layer's three variables, from those that pair its whole kernel and its bias.

    ``forget_biases`` are those that a graph adds, by the name of the kernel or the bias.
    """
    names = tuple(item.name for item in fused.kernels)
    end = cell.inputs + cell.units
    joins = ("concat(1)",) if len(names) > 1 else ()
    gates = {"lstm": ("lstm_gates",), "gru": ("gru_gates",), "rnn": ()}[cell.kind]
    said = {
        "lstm": "gates from i, j, f, o to i, f, c, o",
        "gru": "gates from reset, update, candidate to update, reset, candidate",
        "rnn": "",
    }[cell.kind]
    reason = "; ".join(filter(None, [kernel.reason, said]))
    sure = min(kernel.confidence, bias.confidence)
    lines = [
        replace(
            kernel, source=names, target=target, confidence=sure, reason=f"{reason}; {rows}",
            transforms=(f"slice(0, {start}, {stop})", *joins, *gates),
        )
        for target, start, stop, rows in (
            (cell.kernel.name, 0, cell.inputs, "the rows of the inputs"),
            (cell.recurrent.name, cell.inputs, end, "the rows of the state"),
        )
    ]  # fmt: skip
    added: tuple[str, ...] = ()
    known = forget_biases.get(without_output(fused.biases[0].name))
    if known is not None:
        added = (f"add({known!r}, 0, 4, 1)",) if known else ()
        reason += f"; the graph adds a forget_bias of {known!r} as it runs"
    elif fused.adds_forget_bias:
        added = ("add(1.0, 0, 4, 1)",)
        reason += "; the cell adds its forget_bias as it runs, which is assumed to be 1.0 because no graph says it"
        sure = min(sure, _SURE_OF_THE_FORGET_BIAS)
    names = tuple(item.name for item in fused.biases)
    joins = ("concat(0)",) if len(names) > 1 else ()
    lines.append(
        replace(bias, source=names, transforms=(*joins, *gates, *added), confidence=sure, reason=reason, candidates=())
    )
    return lines


def _layer(units: Sequence[Unit], place: int) -> Cell | None:
    """Returns the recurrent layer whose kernel this unit has; None if it is another unit."""
    unit = units[place]
    kernel, bias = unit.items.get("kernel"), unit.items.get("bias")
    own = next((u for u in units if u.tokens == (*unit.tokens, "recurrent") and "kernel" in u.items), None)
    if kernel is None or bias is None or own is None:
        return None
    recurrent = own.items["kernel"]
    if len(kernel.shape) != 2 or len(recurrent.shape) != 2 or kernel.shape[1] != recurrent.shape[1]:
        return None
    (inputs, width), states = kernel.shape, recurrent.shape[0]
    kind = next((kind for kind, gates in _GATES.items() if width == gates * states), None)
    if kind is None or bias.shape not in ((width,), (2, width)):
        return None
    return Cell(kind, inputs, states, kernel, recurrent, bias)


def _fused(sources: Sequence[Unit], sizes: set[tuple[int, int]], plain: set[tuple[int, ...]]) -> dict[int, Fused]:
    """Returns place of the first unit -> cell, for units that may be a cell of one of these sizes (rows, units).

    ``plain`` are the shapes of the other kernels in the model: one of these is a cell only if its own name says so.
    """
    found: dict[int, Fused] = {}
    linear = {unit.tokens: unit for unit in sources if set(unit.items) == {"kernel", "bias"}}
    scopes = {unit.tokens for unit in sources}
    for place, unit in enumerate(sources):
        if unit.tokens not in linear or (*unit.tokens, "recurrent") in scopes:
            continue
        scope, other = _candidate(unit.tokens)
        both = [linear[unit.tokens], linear[other]] if other in linear else [linear[unit.tokens]]
        kernels, biases = (tuple(each.items[role] for each in both) for role in ("kernel", "bias"))
        if any(len(k.shape) != 2 or b.shape != k.shape[1:] for k, b in zip(kernels, biases, strict=True)):
            continue
        rows, width = kernels[0].shape
        own = unit.tokens[max((end for end in unit.ends if end < len(unit.tokens)), default=0) :]
        said = _says_cell(unit.tokens if kernels[0].shape not in plain else own)
        if len(both) == 2:
            kind = "gru" if kernels[1].shape == (rows, width // 2) and (rows, width // 2) in sizes else ""
        elif width % 4 == 0 and (rows, width // 4) in sizes and (said or kernels[0].shape not in plain):
            kind = "lstm"
        else:
            kind = "rnn" if (rows, width) in sizes and said and own[-1:] != ("candidate",) else ""
        if kind:
            adds = kind == "lstm" and not set(unit.tokens) >= _ADDS_NOTHING
            found[place] = Fused(kind, kernels, biases, adds, _beyond(sources, scope))
    return found


def _says_cell(tokens: tuple[Token, ...]) -> bool:
    return bool(_SAYING & {part for word in canonical_words(tokens) for part in word.split("_")})


def _candidate(tokens: tuple[Token, ...]) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Returns the scope of a cell, and the tokens of the candidate that belongs to these gates, if they are gates."""
    for place, token in reversed(list(enumerate(tokens))):
        if token in _PAIRS:
            return tokens[:place], (*tokens[:place], _PAIRS[str(token)], *tokens[place + 1 :])
    return tokens, ()


def _beyond(sources: Iterable[Unit], scope: tuple[Token, ...]) -> str | None:
    """Returns a variable of a cell that the layers of Keras do not have; None if there is none."""
    for unit in sources:
        if unit.tokens[: len(scope)] == scope and _BEYOND_KERAS & set(map(str, unit.tokens[len(scope) :])):
            return next(iter(unit.items.values())).name
    return None


class _Foreign(NamedTuple):
    """A cell of the file that no layer of Keras can be, in whatever shapes; ``names`` are all its variables."""

    kind: str
    units: int
    beyond: str
    names: tuple[str, ...]


def _foreign(sources: Sequence[Unit]) -> Iterator[_Foreign]:
    """Yields the cells with peepholes or a projection, among them the GRU that is compatible with cuDNN."""
    scopes: dict[tuple[Token, ...], str] = {}
    for unit in sources:
        words = list(map(str, unit.tokens))
        place = next((n for n, word in enumerate(words) if word in _BEYOND_KERAS), 0)
        if "cell" in words[:place]:
            end = place - words[:place][::-1].index("cell")
            scopes.setdefault(unit.tokens[:end], unit.main.name)
    for scope, beyond in scopes.items():
        own = [unit for unit in sources if unit.tokens[: len(scope)] == scope]
        names = tuple(item.name for unit in own for item in unit.items.values())
        for kind, below, gates in (("lstm", (), 4), ("gru", ("gates",), 2)):
            first = next((unit for unit in own if unit.tokens == (*scope, *below) and "bias" in unit.items), None)
            if first is not None and kind in scope:
                yield _Foreign(kind, first.items["bias"].shape[-1] // gates, beyond, names)


def _joined(unit: Unit, kernels: Sequence[Item], biases: Sequence[Item], kind: str, *, along: int = 1) -> Unit:
    """Returns the unit of a cell, with its kernels joined along an axis."""
    shape = list(kernels[0].shape)
    shape[along] = sum(item.shape[along] for item in kernels)
    width = sum(item.shape[0] for item in biases)
    items = {
        kind: kernels[0]._replace(role=kind, shape=tuple(shape)),
        "gates": biases[0]._replace(role="gates", shape=(width,)),
    }
    tokens = _candidate(unit.tokens)[0] if kind == "gru" else unit.tokens
    ends = frozenset(end for end in unit.ends if end <= len(tokens))
    return Unit(tokens, ends, frozenset(canonical_words(tokens)), items)
