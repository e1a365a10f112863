"""Writes weights for PyTorch: a safetensors file under a library's names, and beside it what else is known of them.

X.safetensors comes with config.json (where the library has one and everything in it is known), ledger.json, and
X_parity.py, which loads the file into a PyTorch module of the user's and compares it with the outputs in X_parity.npz.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine import writing
from engine.errors import InputError
from engine.export.config import side_files
from engine.export.libraries import Chosen, choose_names
from engine.export.network_configs import Context
from engine.export.parity_files import Reference, is_script, write_script
from engine.files import FileError, write_json
from engine.porting.outward import Outward, Values
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.safetensors_writer import write_safetensors
from engine.reading import read_file

_LARGEST = 1 << 26  # bytes of a config.json that is compared


@dataclass(frozen=True, kw_only=True)
class Left:
    """What was written.

    Attributes:
        files: the files.
        tensors: how many tensors the safetensors file has.
        lines: what people should know, each as a line with its subject, such as ``config: ...``.
    """

    files: tuple[pathlib.Path, ...]
    tensors: int
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Weights that are named, but not yet written.

    Attributes:
        chosen: the tensors under their names.
        names: what was asked for.
        context: what is known besides.
    """

    chosen: Chosen
    names: str
    context: Context = field(default_factory=Context)

    @property
    def tensors(self) -> Outward:
        return self.chosen.tensors

    @property
    def scales(self) -> bool:
        """Whether the model scales images by variables that have no place in the file."""
        return any(path not in self.tensors.absent for path in self.tensors.left_out)

    def config(self, reference: Reference | str | None = None) -> dict[str, Any] | str:
        """The content of config.json, or why there is none. A reference can say how the model scales images itself."""
        if self.chosen.family is None:
            return "your own rules do not say which network this is"
        scale = self.context.scale if not self.scales else None
        if isinstance(reference, Reference) and reference.scale is not None:
            gain, offset = reference.scale
            mean, std = self.context.scale or ([0.0], [1 / 255])  # keras.applications: images from 0 to 255
            spread = np.asarray(std) / gain
            scale = ((np.asarray(mean) - offset * spread).tolist(), spread.tolist())
        return self.chosen.family.config(self.tensors, replace(self.context, scale=scale))

    def describe(self) -> list[str]:
        """Lines for people, before anything is written."""
        lines = [f"names:   {len(self.tensors.names())} tensors by {self.tensors.rules.name}"]
        config = self.config()
        if not self.chosen.keras:
            lines.append(f"config:  {'config.json' if isinstance(config, dict) else f'none: {config}'}")
            if (
                isinstance(config, dict)
                and not self.scales
                and "mean" not in config.get("pretrained_cfg", {"mean": ()})
            ):
                lines.append(
                    "note:    it does not say how images are scaled, which is not known here; timm would take ImageNet's"
                )
        if self.chosen.family is not None and self.chosen.family.note:
            lines.append(f"note:    {self.chosen.family.note}")
        lines += [f"left out: {path}: {where}" for path, where in self.tensors.left_out.items()]
        return lines

    def check_out(self, out: pathlib.Path, reference: Reference | str | None = None) -> None:
        """Raises InputError if a file cannot be written, or a config.json of another network lies beside it."""
        for path in (out, *side_files(out)):
            writing.check_target(path)
        script = side_files(out)[0]
        if not self.chosen.keras and script.exists() and not is_script(read_file(script, _LARGEST)):
            raise InputError(
                f"{script} exists and is not one that this program wrote; choose another name for {out.name}"
            )
        place = out.parent / "config.json"
        if self.chosen.family is None or not place.exists():
            return
        wanted = json.loads(json.dumps(self.config(reference)))
        try:
            same = json.loads(read_file(place, _LARGEST)) == wanted
        except (FileError, OSError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"{place} exists and is not of this network; write {out.name} into another folder, or remove it"
            )

    def write(
        self,
        out: pathlib.Path,
        *,
        ledger: Mapping[str, Any],
        reference: Reference | str | None = None,
        on_tensor: Callable[[str], None] | None = None,
    ) -> Left:
        """Writes the files, once the tensors were read back and gave every variable, bit for bit.

        Args:
            ledger: what is known of the way of the values to here; the names are added to it.
            reference: inputs and outputs of the original model, or why there are none; None if nobody asked.
            on_tensor: is called with the name of each tensor that was written.

        Raises InputError, before anything is replaced, if a file beside it is not one that this writes.
        """
        self.check_out(out, reference)
        tensors, config = self.tensors, self.config(reference)

        def read(name: str) -> Any:
            value = tensors.read(name)
            if on_tensor is not None:
                on_tensor(name)
            return value

        with writing.explain_no_space(out, 0), writing.temporary_folder(out) as place:
            new = place / out.name
            specs = {name: (tensors.shape(name), tensors.dtype(name)) for name in tensors.names()}
            write_safetensors(new, specs, read, metadata={"format": "pt"} if not self.chosen.keras else None)
            with Safetensors(new) as file:
                tensors.check_back(file)
            os.replace(new, out)
            writing.flush(out.parent)
        files, lines = [out], []
        if isinstance(config, dict):
            files.append(out.parent / "config.json")
            write_json(files[-1], config)
        if tensors.folded:
            lines.append(
                f"folded:  {len(tensors.folded)} biases, such as {tensors.folded[0]}, were subtracted from the mean of the norm "
                "behind them: the function is the same, and read again they are zeros"
            )
        if not self.chosen.keras:
            files += write_script(out, reference)
            lines += [f"parity:  no outputs to compare with: {reference}"] if isinstance(reference, str) else []
        write_json(out.parent / "ledger.json", {**ledger, **self._account()})
        return Left(files=(*files, out.parent / "ledger.json"), tensors=len(specs), lines=tuple(lines))

    def _account(self) -> dict[str, Any]:
        """What the ledger says about each tensor that was written."""
        tensors, family = self.tensors, self.chosen.family
        written = [
            {
                "name": name,
                "from": [part.path for part in tensors.parts(name)],
                "rules": [part.rule.where for part in tensors.parts(name)],
                "shape": list(tensors.shape(name)),
                "dtype": tensors.dtype(name).name,
            }
            for name in tensors.names()
        ]
        return {
            "names": self.names,
            "names_rules": tensors.rules.name,
            "written": written,
            "folded": list(tensors.folded),
            "left_out": dict(tensors.left_out),
            "notes": [family.note] if family is not None and family.note else [],
        }


def plan_leaving(
    names: str,
    values: Values,
    *,
    context: Context,
    paths: Mapping[str, Sequence[str]] | None = None,
    absent: Mapping[str, str] | None = None,
) -> Leaving:
    """Names variables for a library, as ``choose_names`` does; raises InputError if they do not fit there."""
    chosen = choose_names(names, values, network=context.network, paths=paths, absent=absent)
    return Leaving(chosen=chosen, names=names, context=context)
