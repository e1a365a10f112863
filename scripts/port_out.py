"""Weights out of TensorFlow: what port_checkpoint and apply_delta share when --out is a safetensors file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from . import cli

if TYPE_CHECKING:
    from engine.export.leaving import Leaving

F = flags.FLAGS

NAMES_HELP = (
    "For --out=X.safetensors: the names and layouts of the tensors. timm or hf: those of timm (and torchvision) or "
    "transformers, where they have this network; keras: the variables' paths in the layouts of Keras; or a rule file, or the "
    "name of a shipped one, whose lines are read backwards (VARIABLE <- NAME THERE)."
)


def check_names(out: str, names: str | None) -> bool:
    """Whether --out is a safetensors file under other names; InputError if only one of the two flags says so."""
    from engine.errors import InputError

    if names is not None and not out.endswith(".safetensors"):
        raise InputError(f"names={names}: only used with --out=X.safetensors, not with --out={out}")
    return names is not None


def hold(out: pathlib.Path, *given: str) -> None:
    """Checks that the file and those beside it can be written, and keeps other processes out of the folder.

    ``given`` are the paths that are read, none of which may be the file.
    """
    from engine import writing
    from engine.errors import InputError
    from engine.export.config import side_files

    files = [out, *side_files(out), out.parent / "ledger.json"]
    cli.hold_folder(str(out.parent), ours={file.name for file in (*files, out.parent / "config.json")}.__contains__)
    writing.check_file(str(out))
    for file in files:
        writing.check_target(file)
    if any(out.exists() and os.path.exists(each) and os.path.samefile(out, each) for each in given):
        raise InputError(f"out={out}: it is also what is read; choose another name")


def plan(
    values: Any, network: Any, *, source: str, labels: Any = None, absent: Mapping[str, str] | None = None, **known: Any
) -> Leaving:
    """Names the variables of a model, or the tensors of a file, and prints what the names are.

    ``absent`` are the variables that have no value in the source, with the reason; ``known`` is what ``Context`` takes.
    """
    from engine.data.class_names import read_class_names
    from engine.export.leaving import plan_leaving
    from engine.export.network_configs import Context
    from engine.porting.whole_file import VariablesAsTensors
    from engine.selection.variables import ModelVariables

    paths = None
    if isinstance(values, ModelVariables):
        paths = {entry.path: entry.paths for entry in values}
        values = VariablesAsTensors(values)
    place = pathlib.Path(source)
    if labels is None and place.is_file():
        labels = read_class_names(place)
    context = Context(network=network, source=place, labels=labels or (), **known)
    planned = plan_leaving(F.names, values, context=context, paths=paths, absent=absent)
    print("".join(f"{line}\n" for line in planned.describe()), end="")
    return planned


def write(planned: Leaving, out: pathlib.Path, *, ledger: Mapping[str, Any], image_size: Any = None) -> int:
    """Runs the model, if there is one, for the outputs to compare with, and writes all files."""
    from engine.export.parity_files import make_reference

    network = planned.context.network
    reference: Any = None
    if not planned.chosen.keras:
        reference = "no model was given that could compute some"
        if planned.tensors.absent:
            reference = "the source does not have all variables of the model"
        elif network is not None:
            reference = make_reference(network, scales=planned.scales, image_size=image_size)
    left = planned.write(out, ledger=ledger, reference=reference)
    print("".join(f"{line}\n" for line in left.lines), end="")
    for file in left.files:
        print(f"written: {file}")
    print(
        f"checked: {left.tensors} tensors, read back by {planned.tensors.rules.name}, give every variable bit for bit"
    )
    return cli.DONE


def main(out: pathlib.Path) -> int:
    """port_checkpoint without rules that port: the source's own names, a whole Keras model, or Keras' weights of --target."""
    if F.source.endswith((".keras", ".weights.h5")):
        return _from_keras(out)
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.porting.port import Weights

    with open_source(F.source) as source:
        weights = Weights(source, averages=F.take_ema)
        print(f"source:  {weights.path}, {len(source.names())} tensors")
        if weights.hidden:
            print(f"others:  {len(weights.hidden)} tensors are averages, slots or state of an optimizer")
        planned = plan(weights, None, source=F.source, absent=_find_state(weights.names()))
        tensors = planned.tensors
        loaded = [
            {
                "source": [weights.real(part.path)],
                "target": name,
                "transforms": [str(transform) for transform in reversed(part.rule.transforms)],
                "shape": list(tensors.shape(name)),
                "dtype": tensors.dtype(name).name,
                "confidence": 1.0,
            }
            for name in tensors.names()
            for part in tensors.parts(name)
        ]
        skipped = [{"name": name, "rule": reason} for name, reason in weights.hidden.items()]
        if F.dry_run:
            print(f"would write {len(tensors.names())} tensors")
            return cli.DONE
        ledger = _ledger(weights.path.name, out.name, loaded, skipped)
        return write(planned, out, ledger=ledger)


def _from_keras(out: pathlib.Path) -> int:
    from engine import data, models
    from engine.selection.variables import name_variables

    absent: dict[str, str] = {}
    size = data.parse_image_size(F.image_size) if F.image_size else None
    if F.source.endswith(".keras"):
        network = models.build_network(f"file:{F.source}")
        print(f"source:  {F.source}")
    else:
        network = models.build_network(F.target, image_size=size, channels=F.channels)
        text, absent = _load_weights(network)
        print(f"source:  {text}")
    planned = plan(name_variables(network), network, source=F.source, absent=absent, image_size=size)
    if F.dry_run:
        print(f"would write {len(planned.tensors.names())} tensors")
        return cli.DONE
    return write(planned, out, ledger=_ledger(pathlib.Path(F.source).name, F.target or "", [], []), image_size=size)


def _find_state(names: list[str]) -> dict[str, str]:
    """What a checkpoint of a run has besides weights, with the line that says so."""
    from engine.porting.rules import detect

    lines = detect.get_rules(detect.OWN).skip
    return {name: line.where for name in names for line in lines if line.pattern.fullmatch(name)}


def _load_weights(network: Any) -> tuple[str, dict[str, str]]:
    """Loads Keras' weights into a network; returns what was loaded, and the variables of a head that the file lacks."""
    from engine.models.weights import load_weights
    from engine.porting.plan import ABSENT
    from engine.selection.variables import name_variables

    head = [entry for entry in name_variables(network) if "head" in entry.groups]
    before = [entry.variable.numpy().tobytes() for entry in head]
    text = load_weights(network, F.source).text
    same = [entry.variable.numpy().tobytes() for entry in head] == before
    return text, dict.fromkeys([entry.path for entry in head], ABSENT) if same else {}


def _ledger(source: str, target: str, loaded: list[Any], skipped: list[Any]) -> dict[str, Any]:
    return {
        "source": source, "target": target, "rules": None, "loaded": loaded, "skipped": skipped, "unused": [], "missing": [],
        "fresh": {}, "images": None, "slots": [], "parity": None,
    }  # fmt: skip
