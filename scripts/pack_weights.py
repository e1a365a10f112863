"""Write the weights of a run, without the head, into a file such as those that ship with a model."""

from __future__ import annotations

from absl import flags

from . import cli

F = flags.FLAGS

flags.DEFINE_string(
    "source", None, "The trained.npz of a run that trained every variable, or a checkpoint (.npz).", required=True
)
flags.DEFINE_string("drop", r"head/.*", "Regular expression; variables whose whole path it matches are left out.")
flags.DEFINE_string("out", None, "The .npz file to write.", required=True)


def main() -> int:
    from engine.data.class_names import as_texts, read_class_names
    from engine.errors import InputError
    from engine.files import Npz, write_npz
    from engine.text import compile_pattern

    drop = compile_pattern(F.drop, name="drop")
    cli.check_out(F.out)
    with Npz(F.source) as npz:
        kept = [name for name in npz.names() if not name.startswith("optimizer/") and not drop.fullmatch(name)]
        if not kept:
            raise InputError(f"drop={F.drop!r} leaves no variable of {F.source}")
        names = read_class_names(F.source) if any(name.startswith("head/") for name in kept) else None
        write_npz(F.out, ((name, npz.read(name)) for name in kept), texts=as_texts(names))
    print(f"written: {F.out}, {len(kept)} variables")
    return cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
