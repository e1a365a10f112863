"""The head of an encoder in a folder: where Hugging Face's layout has one, and where an export puts it beside the trunk.

``classifier.weight`` and ``classifier.bias`` in ``model.safetensors`` are the head of BertForSequenceClassification, which reads
BERT's pooler. A head that reads anything else has no place there; an export writes it as ``head.safetensors``, under the same
names, and its metadata say what it reads. A folder's head is taken only where ``head=own`` asks for it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from engine import porting
from engine.errors import FileError
from engine.models.spec import ModelSpecError
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.rules import detect
from engine.porting.rules.language import Rules, parse_rules
from engine.selection.variables import name_variables

TRUNK, BESIDE = "model.safetensors", "head.safetensors"
POOL = "pool"  # among the metadata of BESIDE
_WEIGHT = "classifier.weight"
_RULES = parse_rules(
    "head/kernel <- classifier.weight | transpose(1, 0)\nhead/bias <- classifier.bias", name="head_hf.rules"
)


def with_head(rules: Rules) -> Rules:
    """Rules of a trunk that also read the head."""
    skip = tuple(line for line in rules.skip if not line.pattern.fullmatch(_WEIGHT))
    return dataclasses.replace(rules, rules=(*rules.rules, *_RULES.rules), skip=skip)


def head_rules() -> Rules:
    return _RULES


def find_own_head(spec: str, folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The file of a folder that has a head, and what that reads ("mean", "cls" or "pooler"); ModelSpecError if none has one."""
    try:
        if (beside := folder / BESIDE).is_file():
            with Safetensors(beside) as file:
                return beside, file.metadata.get(POOL, "")
        if (trunk := folder / TRUNK).is_file():
            with Safetensors(trunk) as file:
                names = file.names()
            if _WEIGHT in names and any(name.endswith("pooler.dense.weight") for name in names):
                return trunk, "pooler"
    except FileError as error:
        raise ModelSpecError(f"model={spec!r}: {error}") from None
    raise ModelSpecError(
        f"model={spec!r}: head=own: {folder} has no head that can be taken: neither {BESIDE}, which frostline export writes, nor "
        f"{_WEIGHT} behind BERT's pooler in {TRUNK}; without head=own the head starts anew"
    )


def load_with_head(network: Any, trunk: pathlib.Path, head: pathlib.Path) -> Callable[[str], str | None]:
    """``Model.load`` for a folder whose own head is taken: "auto" loads both."""

    def load(weights: str) -> str | None:
        if weights != "auto":
            return None
        with porting.open_tensors(trunk) as source:
            rules = detect.choose_rules(source, name_variables(network))
        ledger = porting.load(network, trunk, with_head(rules) if head == trunk else rules)
        loaded = len(ledger.loaded)
        if head != trunk:
            loaded += _load_head(network, head)
        return f"{trunk.name}, {loaded} variables loaded by {rules.name}; the head is that of {head.name}"

    return load


def _load_head(network: Any, file: pathlib.Path) -> int:
    entries = {entry.path: entry for entry in name_variables(network) if entry.path in ("head/kernel", "head/bias")}
    with Safetensors(file) as source:
        found = {"head/kernel": source.read(_WEIGHT).T, "head/bias": source.read("classifier.bias")}
    for path, value in found.items():
        own = entries[path].variable
        if tuple(own.shape) != value.shape:
            raise porting.PortError(
                f"{file}: the head is {list(value.shape)}, and that of the model {list(own.shape)}; without head=own it starts anew"
            )
    for path, value in found.items():
        own = entries[path].variable
        own.assign(value.astype(own.dtype.as_numpy_dtype))
    return len(found)
