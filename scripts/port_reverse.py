"""What port_checkpoint does with --reverse: weights of this project into a checkpoint of TensorFlow 1."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from scripts import cli

F = flags.FLAGS


def main(out: pathlib.Path | None) -> int:
    from compat_v1.checkpoints.export import export
    from compat_v1.checkpoints.families import families
    from compat_v1.checkpoints.reader import open_checkpoint
    from compat_v1.graphs import saver_keys
    from compat_v1.porting.reverse import Known, Reverse
    from compat_v1.porting.slots_back import slots_back
    from engine import data, models
    from engine.errors import InputError
    from engine.files import write_json
    from engine.porting import open_tensors
    from engine.porting.rules import detect
    from engine.selection.variables import name_variables

    if out is None or F.rules is None:
        raise InputError("reverse: --rules (those that ported the checkpoint) and --out=PREFIX are needed")
    if str(out).endswith((".npz", ".h5", ".index")):
        raise InputError(f"out={F.out!r}: with --reverse it is a checkpoint's prefix, such as model.ckpt")
    if F.base is not None and _same_place(out, F.base):
        raise InputError(f"out={F.out!r}: it is the base itself; choose another prefix")
    rules = detect.named(F.rules)
    size = data.parse_image_size(F.image_size) if F.image_size else None
    network = models.build_network(F.target, image_size=size, channels=F.channels)
    variables = name_variables(network)
    grid = getattr(network, "grid", None)
    print(f"source:  {_load(network)}")
    wanted = _wanted(saver_keys)

    base = held = None
    if F.base is not None:
        base = open_checkpoint(F.base)
        held = families(base)
    try:
        back = Reverse(network, rules, base if base is not None else Known.rules(variables, rules), grid=grid)
        values: dict[str, Any] = {}
        left: list[str] = []
        if F.source.endswith(".npz"):
            with open_tensors(F.source) as source:
                values, left = slots_back(variables, rules, source, base, held, betas=(F.beta1, F.beta2))
    finally:
        if base is not None:
            base.close()
    for path, reason in back.left_out.items():
        print(f"left out: {path}: {reason}")
    for name in left[:5]:
        print(f"left out: {name}: the base has no such slot")
    if F.dry_run:
        print(f"would write {len(back.names()) + len(values)} tensors of the model")
        return cli.DONE
    found = export(_Both(back, values), out, base=F.base, wanted=wanted, version=F["format"].value)
    changed = back.changed if F.base is not None else back.names()
    print(
        f"tensors: {len(found.written)} by rule, of which {len(changed)} changed; {len(found.copied)} copied from the base"
    )
    for file in found.files:
        print(f"written: {file}")
    ledger = {
        "source": F.source,
        "target": str(out),
        "rules": rules.name,
        "base": F.base,
        "written": list(found.written),
        "changed": list(changed),
        "copied": list(found.copied),
        "left_out": dict(back.left_out) | dict.fromkeys(left, "the base has no such slot"),
        "slots": list(values),
    }
    write_json(out.parent / "ledger.json", ledger)
    print(f"written: {out.parent / 'ledger.json'}")
    return cli.DONE


class _Both:
    """A model's tensors and slots as compat_v1.checkpoints.export.Values."""

    def __init__(self, back: Any, slots: dict[str, Any]) -> None:
        self._back, self._slots = back, slots

    def names(self) -> list[str]:
        return [*self._back.names(), *self._slots]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._slots[name].shape if name in self._slots else self._back.shape(name)

    def dtype(self, name: str) -> Any:
        return self._slots[name].dtype if name in self._slots else self._back.dtype(name)

    def read(self, name: str) -> Any:
        return self._slots[name] if name in self._slots else self._back.read(name)


def _load(network: Any) -> str:
    """Puts --source into the model: a file of this project, or one that Keras wrote of this very model."""
    from engine import porting
    from engine.errors import InputError
    from engine.selection.variables import is_keras

    if F.source.endswith(".weights.h5"):
        if not is_keras(network):
            raise InputError(f"source={F.source!r}: {F.target} is no Keras model")
        try:
            network.load_weights(F.source)
        except Exception as error:  # Keras raises many kinds
            raise InputError(
                f"source={F.source!r}: Keras cannot load it ({' '.join(str(error).split())[:300]})"
            ) from None
        return f"{F.source}, by Keras"
    ledger = porting.load(network, F.source, "frostline")
    return f"{F.source}, {ledger.summary()}"


def _wanted(saver_keys: Any) -> list[Any]:
    """What the Saver of --graph wants, if it is given: all of that must be in the checkpoint."""
    if F.graph is None:
        return []
    from compat_v1.graphs import metagraph

    found: list[Any] = saver_keys.wanted(metagraph.read(F.graph).definition)
    return found


def _same_place(out: pathlib.Path, base: str) -> bool:
    from compat_v1.checkpoints.locate import locate

    found = locate(base)
    return found is not None and pathlib.Path(found.prefix).resolve() == out.resolve()
