"""Write whole weights from a base and what runs trained (trained.npz), in the base's own format.

A delta that belongs to other weights is refused: both digests are named, and the first variables that differ. The file is
whole or as it was, whatever happens. With --names, the whole weights leave TensorFlow: as a safetensors file under the names
of timm, of Hugging Face's transformers or of a rule file.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from . import cli, port_out

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "base": "The weights from which the run started, as its --weights had them: an .npz, safetensors, .weights.h5 or .keras file, the prefix of a TensorFlow checkpoint, a frozen graph (.pb), auto, or one of these with deltas (BASE+DELTA).",
        "delta": "RUN/trained.npz or RUN/ema.npz; A+B puts B, which was trained on top of A, onto A.",
        "out": "The file to write, with the base's suffix (.npz, .safetensors, .weights.h5, .keras, .pb); for a checkpoint its prefix, which a frozen graph can become too.",
        "rules": "Which tensor of the base becomes which variable: a rule file, or the name of a shipped one (default: as in the run, else chosen by the names in the base).",
        "run": "The run directory, from which Keras files and auto take the model (default: the folder of the last delta).",
        "names": port_out.NAMES_HELP,
        "force_base": "Put a delta also onto weights that it does not belong to.",
    },
    {"force_base": False},
)


def main() -> int:
    from engine.errors import InputError
    from engine.porting.deltas.chain import WORDS, parse_chain, parse_deltas

    for name in ("base", "delta", "out"):
        if F[name].value is None:
            raise InputError(f"{name}=None: --{name} is required; --help describes it")
    base = parse_chain(F.base, name="base")
    deltas = [*base.deltas, *parse_deltas(F.delta)]
    leaves = port_out.check_names(F.out, F.names)
    if leaves:
        port_out.hold(pathlib.Path(F.out), base.base, *deltas)
    else:
        cli.check_out(F.out)
    cli.import_tensorflow()
    if leaves:
        return _leave(base.base, deltas)
    from engine.recipes.apply_delta import apply_delta, find_kind, find_rules

    kind = "" if base.base in WORDS else find_kind(base.base)
    if kind == "checkpoint" or (kind == "frozen" and not F.out.endswith((".pb", ".pbtxt"))):
        run = pathlib.Path(F.run) if F.run else pathlib.Path(deltas[-1]).parent
        return _apply_to_checkpoint(base.base, deltas, F.rules or find_rules(run))
    done = apply_delta(base.base, deltas, F.out, rules=F.rules, run=F.run, force_base=F.force_base)
    _print_texts(done.texts)
    if done.dropped:
        print(f"left out: {len(done.dropped)} slots, averages and states of generators, which belong to other values")
    if done.rounded:
        print(f"rounded: {len(done.rounded)} variables to the base's dtype, such as {done.rounded[0]}")
    print(f"written: {done.out}, {done.tensors} tensors, of which {len(done.changed)} differ from the base")
    return cli.DONE


def _leave(base: str, deltas: list[str]) -> int:
    """Writes a safetensors file under other names."""
    from engine.recipes.apply_delta import open_whole

    whole = open_whole(base, deltas, rules=F.rules, run=F.run, force_base=F.force_base)
    _print_texts(whole.texts)
    opened, known = whole.opened, dict[str, Any]()
    if opened is not None:
        height, width, channels = opened.image_shape
        channels = opened.normalise.channels or channels
        known = {"labels": opened.class_names, "image_size": (height, width)}
        if not opened.normalise.reverse:
            given = (opened.normalise.mean, opened.normalise.std)
            known["scale"] = tuple(list(values) * (channels if len(values) == 1 else 1) for values in given)
    planned = port_out.plan(whole.variables, whole.network, source=base, **known)
    ledger = {"source": "+".join([base, *deltas]), "target": F.out, "texts": list(whole.texts)}
    return port_out.write(planned, pathlib.Path(F.out), ledger=ledger, image_size=known.get("image_size"))


def _apply_to_checkpoint(base: str, deltas: list[str], rules: str | None) -> int:
    from compat_v1.porting.apply_delta import apply_to_checkpoint

    done = apply_to_checkpoint(base, deltas, pathlib.Path(F.out), rules=rules, force=F.force_base)
    _print_texts(done.texts)
    for file in done.files:
        print(f"written: {file}")
    print(f"tensors: {done.tensors}, of which {len(done.changed)} differ from the base")
    return cli.DONE


def _print_texts(texts: tuple[str, ...]) -> None:
    for place, text in enumerate(texts):
        print(f"{'delta:  ' if place else 'base:   '} {text}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
