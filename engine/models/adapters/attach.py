"""Attaches adapters to a network, where their filters say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from engine.models.adapters import kinds
from engine.models.adapters.language import LAYERS, Adapter, AdapterError, parse_adapters
from engine.models.adapters.target import Target
from engine.models.adapters.targets import find_targets
from engine.models.spec import Model
from engine.selection.filters import FilterError
from engine.selection.selection import matching_paths
from engine.selection.variables import ModelVariables, name_variables
from engine.text import join_some, nearest


@dataclass(frozen=True)
class Chosen:
    """What one item adapts.

    Attributes:
        adapter, targets: the item, and the layers that get it.
        left: kernels that the filter matches and that stay as they are, since the kind does not apply to their layers.
    """

    adapter: Adapter
    targets: tuple[Target, ...]
    left: tuple[str, ...]


@dataclass(eq=False)
class Adapters:
    """The adapters of a model: asked for when it is built, and attached once its base has been loaded.

    Attributes:
        text, seed: what is asked for, and the seed of the first values.
        lines: a line for each item, for people; empty until they are attached.
    """

    text: str
    seed: int
    lines: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether they have not been attached yet."""
        return not self.lines


def request_adapters(model: Model, text: str | None, *, seed: int = 0) -> None:
    """Notes that a model is to have adapters, unless the text is None; loading weights into it then attaches them.

    Raises AdapterError as ``attach`` does.
    """
    if text is None:
        return
    choose(model.network, parse_adapters(text))
    model.adapters = Adapters(text, seed)


def attach_requested(model: Model) -> bool:
    """Attaches what was asked for, unless that is nothing or has been done; returns whether it did."""
    asked = model.adapters
    if asked is None or not asked.pending:
        return False
    before = name_variables(model.network)
    chosen = choose(model.network, parse_adapters(asked.text))
    attach(model.network, asked.text, seed=asked.seed)
    asked.lines = _describe(chosen, before, name_variables(model.network))
    return True


def holds_requested(model: Model, names: Sequence[str]) -> bool:
    """Whether the names in a file of weights are also those of the adapters that a model is to have, as in a checkpoint."""
    if model.adapters is None or not model.adapters.pending:
        return False
    chosen = choose(model.network, parse_adapters(model.adapters.text))
    starts = tuple(f"{target.path}/{item.adapter.kind}/" for item in chosen for target in item.targets)
    return any(name.startswith(starts) for name in names)


def attach(network: Any, text: str, *, seed: int = 0) -> tuple[str, ...]:
    """Attaches adapters to the layers of a network, which then computes what it did before, to the bit.

    Args:
        network: the engine's own, a Keras model, or a tf.Module with layers of these.
        text: such as ``lora:rank=8 @attention; ssf @norm`` (engine.models.adapters.language).
        seed: decides the first values of ``down``.

    Returns:
        The paths of the variables that were made, such as ``blocks/3/attention/query/lora/down``.

    Raises:
        AdapterError: a filter names no layer that its kind can adapt, a layer would get the same kind twice, a rank is
            larger than a kernel allows, or the network has adapters already.
    """
    before = {entry.path for entry in name_variables(network)}
    for item in choose(network, parse_adapters(text)):
        for target in item.targets:
            _attach_one(target, item.adapter, seed)
    return tuple(entry.path for entry in name_variables(network) if entry.path not in before)


def choose(network: Any, adapters: Sequence[Adapter]) -> list[Chosen]:
    """Which layers each item adapts; raises AdapterError as ``attach``."""
    variables = name_variables(network)
    targets = find_targets(network, variables)
    present = [e.path for e in variables if "adapters" in e.groups]
    if present:
        raise AdapterError(
            f"adapt: the network has adapters already ({join_some(present, most=2)}); attach all of them at once, "
            "separated by `;`, to a network without any"
        )
    found: list[Chosen] = []
    for adapter in adapters:
        item = _choose_one(adapter, variables, targets)
        for other in found:
            twice = [t.path for t in item.targets if adapter.kind == other.adapter.kind and t in other.targets]
            if twice:
                raise AdapterError(
                    f"adapt: `{other.adapter}` and `{adapter}` would both adapt {join_some(twice, most=2)}; exclude them from "
                    f"one of the filters, as in `!{twice[0]}/.*`"
                )
        found.append(item)
    return found


def _choose_one(adapter: Adapter, variables: ModelVariables, targets: Sequence[Target]) -> Chosen:
    try:
        matched = matching_paths(variables, adapter.filter)
    except FilterError as error:
        raise AdapterError(f"adapt: `{adapter}`: {error}") from None
    own = {target.entry.path: target for target in targets}
    entries = [e for e in variables if e.path in matched and (e.path in own or "kernel" in e.groups)]
    body = [e for e in entries if "head" not in e.groups]
    fitting = [own[e.path] for e in body if e.path in own and own[e.path].takes(adapter.kind)]
    names = {target.path for target in fitting}
    left = [e.path for e in body if "kernel" in e.groups and e.path.rpartition("/")[0] not in names]
    if not fitting:
        raise AdapterError(f"adapt: `{adapter}` {_explain(adapter, matched, entries, left, targets)}")
    for target in fitting:
        if adapter.kind == "lora" and adapter.size > target.lora_limit:
            raise AdapterError(
                f"adapt: `{adapter}`: rank={adapter.size} is more than the rank that {target.entry.path} "
                f"{list(target.entry.shape)} can have, {target.lora_limit}; give a smaller rank, or exclude it with "
                f"`!{target.path}/.*`"
            )
    return Chosen(adapter, tuple(fitting), tuple(left))


def _explain(
    adapter: Adapter, matched: frozenset[str], entries: Sequence[Any], left: Sequence[str], targets: Sequence[Target]
) -> str:
    """Why an item adapts nothing."""
    known = [t.entry.path for t in targets if t.takes(adapter.kind) and "head" not in t.entry.groups]
    if not known:
        return f"adapts nothing: the model has no layers that {adapter.kind} can adapt ({LAYERS[adapter.kind]}, below the head)"
    if left:
        return (
            f"adapts nothing: {adapter.kind} is for {LAYERS[adapter.kind]}, with channels last, and the filter names "
            f"{join_some(list(left), most=2)}; such as {join_some(known, most=2)} can be adapted"
        )
    if entries and all("head" in entry.groups for entry in entries):
        return (
            f"adapts nothing: it names only the head, which trains as it is; such as {join_some(known, most=2)} can be "
            "adapted"
        )
    shown = join_some(sorted(matched), most=2) if matched else "nothing"
    return (
        f"names no layer that can be adapted: a filter must match its kernel (for ssf also its gamma), and this one "
        f"matches {shown}{nearest(next(iter(sorted(matched)), ''), known)}"
    )


def _attach_one(target: Target, adapter: Adapter, seed: int) -> None:
    inputs = target.inputs
    if adapter.kind == "adapter" and target.groups > 1:  # a bottleneck sees all channels
        inputs = (*inputs[:-1], inputs[-1] * target.groups)
    values = kinds.first_values(
        adapter.kind,
        path=target.path,
        seed=seed,
        size=adapter.size,
        inputs=inputs,
        outputs=target.outputs,
        scales=target.multiplier is not None,
        shifts=target.offset is not None,
    )
    if target.keras:
        from engine.models.adapters import keras_layers

        keras_layers.attach(target, adapter.kind, values, rank=adapter.size, alpha=adapter.alpha)
        return
    factor = adapter.alpha / adapter.size if adapter.kind == "lora" else 1.0
    given = {"dtype": tf.as_dtype(target.entry.variable.dtype), "factor": factor}
    setattr(target.layer, adapter.kind, kinds.AdapterVariables(adapter.kind, values, **given))


def _describe(chosen: Sequence[Chosen], before: ModelVariables, after: ModelVariables) -> tuple[str, ...]:
    """A line for each item: how many layers it adapts, and with how many parameters."""
    lines = []
    for item in chosen:
        kind = item.adapter.kind
        ends = tuple(f"{target.path}/{kind}/" for target in item.targets)
        size = sum(entry.size for entry in after if "adapters" in entry.groups and entry.path.startswith(ends))
        layers = f"{len(item.targets)} layer{'s'[: len(item.targets) - 1]}"
        line = f"{item.adapter}: {layers}, {size:,} parameters ({size / before.parameters:.2%} of the model's)"
        if item.left:
            line += f"; as they are: {join_some(list(item.left), most=2)}, to which {kind} does not apply"
        lines.append(line)
    return tuple(lines)
