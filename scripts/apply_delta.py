"""Write whole weights from a base and what runs trained (trained.npz), in the base's own format.

A delta that belongs to other weights is refused: both digests are named, and the first variables that differ. The file is
whole or as it was, whatever happens.
"""

from __future__ import annotations

import pathlib

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "base": "The weights from which the run started, as its --weights had them: an .npz, safetensors, .weights.h5 or .keras file, the prefix of a TensorFlow checkpoint, auto, or one of these with deltas (BASE+DELTA).",
        "delta": "RUN/trained.npz or RUN/ema.npz; A+B puts B, which was trained on top of A, onto A.",
        "out": "The file to write, with the base's suffix (.npz, .safetensors, .weights.h5, .keras); for a checkpoint its prefix.",
        "rules": "Which tensor of the base becomes which variable: a rule file, or the name of a shipped one (default: as in the run, else chosen by the names in the base).",
        "run": "The run directory, from which Keras files and auto take the model (default: the folder of the last delta).",
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
    cli.check_out(F.out)
    cli.import_tensorflow()
    from engine.recipes.apply_delta import apply_delta, find_kind, find_rules

    if base.base not in WORDS and find_kind(base.base) == "checkpoint":
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
