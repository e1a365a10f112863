"""Finds and reads the weights of an old graph, by the names of its variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compat_v1.checkpoints.families import Families, group_families
from compat_v1.errors import GraphError
from compat_v1.graphs.extract import OldVariable
from compat_v1.graphs.frozen import Thawed
from compat_v1.graphs.metagraph import MetaGraph
from compat_v1.graphs.original import read_value
from compat_v1.models.network import GraphNetwork
from compat_v1.models.old_graph import OldGraph
from compat_v1.porting.slots import count_steps
from engine import porting
from engine.porting.readers.locate import locate
from engine.porting.readers.tensor_source import TensorSource
from engine.text import join_some

_SATURATED = 200_000  # steps after which 0.999**t is 0 in float32, so that Adam no longer corrects a bias


def find_weights(old: OldGraph) -> str | None:
    """The checkpoint that lies beside a graph, or the file of a frozen one; None if there is none."""
    return str(old.meta.path) if old.frozen is not None else find_checkpoint(old.meta)


def find_checkpoint(meta: MetaGraph) -> str | None:
    """The prefix of the checkpoint that lies beside a .meta file or in a SavedModel; None if there is none."""
    file = meta.path
    if file.name.startswith("saved_model."):
        prefix = str(file.parent / "variables" / "variables")
    elif file.name.endswith(".meta"):
        prefix = str(file)[: -len(".meta")]
    else:
        return None
    return prefix if locate(prefix) is not None else None


def read_values(
    variables: Sequence[OldVariable], weights: str | None, spec: str, *, frozen: Thawed | None = None
) -> Mapping[str, np.ndarray]:
    """The value of each variable, by its node; zeros without a checkpoint. GraphError if the checkpoint does not fit."""
    if frozen is not None:
        return frozen.values
    if weights is None:
        found = {}
        for variable in variables:
            if variable.shape is None or None in variable.shape:
                raise GraphError(
                    f"model={spec!r}: the graph does not state the shape of {variable.node}, and no checkpoint lies beside it"
                )
            lengths = [n or 0 for n in variable.shape]
            found[variable.node] = np.zeros(lengths, variable.dtype.as_numpy_dtype)
        return found
    with porting.open_tensors(weights) as source:
        return dict(zip((each.node for each in variables), _read_all(variables, source, spec), strict=True))


def _read_all(variables: Sequence[OldVariable], source: TensorSource, spec: str) -> list[np.ndarray]:
    names = set(source.names())
    missing = [each for each in variables if each.saved.key not in names and each.node not in names]
    if missing:
        wanted = {each.saved.key for each in variables} | {each.node for each in variables}
        others = sorted(names - wanted)
        raise GraphError(
            f"{source.path}: it does not fit model={spec!r}: {len(missing)} of {len(variables)} variables are not in it "
            f"({join_some([each.node for each in missing])}); of its {len(names)} tensors, {len(others)} are not variables of the "
            f"graph ({join_some(others) or 'none'})"
        )
    return [read_value(variable, source, spec) for variable in variables]


def load(name: str, *, spec: str, network: GraphNetwork, own: str | None) -> str | None:
    """Loads weights by their name in a flag, and says what was loaded; None for a file that is not a TF1 checkpoint."""
    if name == "auto":
        if own is None:
            raise porting.PortError(
                f"weights='auto': no checkpoint lies beside the graph of model={spec!r}; --weights=PREFIX names one"
            )
        return f"{own}, {len(network.old_variables)} variables by their names"
    if name in ("none", "imagenet"):
        raise porting.PortError(
            f"weights={name!r}: model={spec!r} has only the weights of a checkpoint; expected auto or a file"
        )
    if locate(name) is None:
        return None
    with porting.open_tensors(name) as source:
        network.assign(
            dict(
                zip(
                    (v.node for v in network.old_variables), _read_all(network.old_variables, source, spec), strict=True
                )
            )
        )
    return f"{name}, {len(network.old_variables)} variables by their names"


class OldTensors:
    """A checkpoint of an old graph under the names of the engine: its optimizer slots are ``optimizer/<path>/<slot>``.

    ``steps`` is the number of updates that the optimizer has made.
    """

    def __init__(self, source: TensorSource, slots: Mapping[str, str], steps: int) -> None:
        self._source, self._slots, self._steps = source, slots, steps
        self.path, self.checksums = source.path, source.checksums

    def names(self) -> list[str]:
        return list(self._slots)

    def shape(self, name: str) -> tuple[int, ...]:
        return () if name.endswith("/t") else self._source.shape(self._slots[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(np.int64) if name.endswith("/t") else self._source.dtype(self._slots[name])

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self._steps, np.int64) if name.endswith("/t") else self._source.read(self._slots[name])

    def read_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._source.read_slice(self._slots[name], start, stop)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> OldTensors:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def open_slots(own: str | None, network: GraphNetwork, weights: str) -> TensorSource | None:
    """Opens the slots in a checkpoint of an old graph, its own one for "auto"; None if it has none.

    Those of the first optimizer are taken. Raises SlotError if nothing says how many steps it has made.
    """
    place = own if weights == "auto" else weights
    if place is None or locate(place) is None:
        return None
    source = porting.open_tensors(place)
    found = group_families(source)
    kind = next(iter(found.kinds()), None)
    if kind is None:
        source.close()
        return None
    slots: dict[str, str] = {}
    for variable in network.old_variables:
        family = found.get(variable.saved.key) if variable.saved.part is None else None
        for slot, name in (family.slots.get(kind, {}) if family is not None else {}).items():
            slots[f"optimizer/{variable.node}/{slot}"] = name
            slots[f"optimizer/{variable.node}/t"] = ""
    return OldTensors(source, slots, _count_steps(source, found, kind))


def _count_steps(source: TensorSource, found: Families, kind: str) -> int:
    powers = [float(source.read(name)) for name in found.state.get("beta2_power", ())]
    if powers and not any(powers) and not found.state.get("global_step"):
        return _SATURATED
    return count_steps(source, found, kind).t
