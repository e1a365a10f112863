"""Pack a run's trained.npz into a weights file without the head, such as those that ship with a model."""

from __future__ import annotations

from absl import flags

from scripts import cli

F = flags.FLAGS

flags.DEFINE_string("source", None, "trained.npz of a run that trained everything, or a checkpoint.", required=True)
flags.DEFINE_string("drop", r"head/.*", "Regular expression: variable paths to leave out (whole paths).")
flags.DEFINE_string("out", None, "The .npz file to write.", required=True)


def main() -> int:
    import re

    from engine.errors import InputError
    from engine.files import Npz, write_npz

    try:
        drop = re.compile(F.drop)
    except re.error as error:
        raise InputError(f"drop={F.drop!r}: no regular expression: {error}") from None
    with Npz(F.source) as npz:
        kept = [name for name in npz.names() if not name.startswith("optimizer/") and not drop.fullmatch(name)]
        if not kept:
            raise InputError(f"source={F.source}: no variable is left after --drop={F.drop!r}")
        write_npz(F.out, ((name, npz.read(name)) for name in kept))
    print(f"written: {F.out}, {len(kept)} variables")
    return cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
