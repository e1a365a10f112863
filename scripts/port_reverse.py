"""The reverse direction of port_checkpoint: a model's weights into a TensorFlow 1 checkpoint."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from . import cli

F = flags.FLAGS


def main(out: pathlib.Path) -> int:
    from compat_v1.porting.write_back import check_prefix, plan_write_back
    from engine import data, models
    from engine.porting.rules import detect

    check_prefix(out, F.base, version=F["format"].value)
    rules = detect.get_rules(F.rules)
    size = data.parse_image_size(F.image_size) if F.image_size else None
    network = models.build_network(F.target, image_size=size, channels=F.channels)
    print(f"source:  {_load(network, rules)}")
    slots = F.source if F.source.endswith(".npz") else None
    with plan_write_back(network, rules, base=F.base, slots=slots, betas=(F.beta1, F.beta2)) as planned:
        for name, reason in list(planned.left_out.items())[: len(planned.reverse.left_out) + 5]:
            print(f"left out: {name}: {reason}")
        if F.dry_run:
            print(f"would write {len(planned.names())} tensors of the model")
            return cli.DONE
        exported = planned.write(out, graph=F.graph, tags=F.tags, version=F["format"].value)
        print(
            f"tensors: {len(exported.written)} by rule, of which {len(planned.changed())} changed; "
            f"{len(exported.copied)} copied from the base"
        )
        ledger = out.parent / "ledger.json"
        planned.write_ledger(ledger, exported, source=F.source, target=str(out), rules=rules)
    for file in (*exported.files, ledger):
        print(f"written: {file}")
    return cli.DONE


def _load(network: Any, rules: Any) -> str:
    """Loads --source into the model: a file of this project, or one that Keras wrote for this very model."""
    from compat_v1.porting.run_result import load_result
    from engine.models.keras.weights_file import load_weights_file

    if F.source.endswith(".weights.h5"):
        return f"{F.source}: {load_weights_file(network, F.source)}"
    return f"{F.source}, {load_result(network, F.source, rules=rules, base=F.base, force_base=F.force_base)}"
