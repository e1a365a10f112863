"""Look at whatever TensorFlow 1 left, say what it is and which ways lead on, and write the commands.

`frostline migrate OLD`: OLD is the model_dir of an Estimator, a module of TensorFlow Hub, a SavedModel, a frozen .pb, a .meta
file, a graph.pbtxt or a checkpoint. Nothing of a graph is run. The exit code is 1 if something is damaged (each is named), and
2 if there is nothing of TensorFlow 1, or a choice is needed (the candidates are listed).
"""

from __future__ import annotations

import os
import pathlib
import sys

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "old": "What TensorFlow 1 left: a folder, a graph file, or the prefix or a file of a checkpoint. `migrate OLD` means the same.",
        "checkpoint": "The checkpoint to look at, where a folder holds several (unless given, the one that its file `checkpoint` names).",
        "tags": "Comma-separated tags of the graph, where a SavedModel holds several (unless given, the one that serves).",
        "inputs": "Where it is not clear which tensor of the graph is fed with data: as for finetune.",
        "outputs": "Where it is not clear which tensor of the graph is its output: as for finetune.",
        "graph_inputs": "Values of the graph's switches in training, as in 'is_training=True keep_prob=0.8': as for finetune.",
        "target": "A model to port the weights into, as for port-checkpoint: rules for it are chosen or proposed.",
        "verify": "Read every tensor to find damage; with --noverify, only names, shapes and scalars are read.",
        "out": "A folder, new or empty, for the report (migrate.md, migrate.json), commands.sh, a first ledger.json, and proposed.rules, where there are some (none unless given).",
    },
    {"tags": list, "verify": True},
)
_SWITCHES = ("--verify", "--noverify", "--traceback", "--notraceback")


def main() -> int:
    from engine.errors import InputError

    if not F.old:
        raise InputError("old=None: expected `frostline migrate OLD`, the folder or file that TensorFlow 1 left")
    if F.out is not None:
        _check_out(F.out, F.old)
    cli.import_tensorflow(keras=F.target is not None and cli.needs_keras(F.target))
    from compat_v1.migration.investigate import Question, investigate
    from compat_v1.migration.training import Chosen

    question = Question(
        checkpoint=F.checkpoint,
        chosen=Chosen(None if F.tags is None else tuple(filter(None, F.tags)), F.inputs, F.outputs, F.graph_inputs),
        target=F.target,
        verify=F.verify,
    )
    report = investigate(F.old, question)
    print(report.page())
    if report.question:
        raise InputError(report.question)
    if F.out is not None:
        from compat_v1.migration.report import FILES

        cli.hold_folder(F.out, ours=FILES.__contains__)
        _check_empty(F.out)  # another process may have written into it meanwhile
        print("\n" + "".join(f"written: {path}\n" for path in report.write(F.out)), end="")
    return cli.FAILED if report.damage else cli.DONE


def _check_out(out: str, old: str) -> None:
    """Raises InputError unless a folder is new or empty, and not a part of the old project."""
    from engine import writing
    from engine.errors import InputError

    place = pathlib.Path(os.path.abspath(out))
    if pathlib.Path(old).is_dir() and place.is_relative_to(os.path.abspath(old)):
        raise InputError(f"out={out}: it lies in {old}, which is only read; name a folder outside of it")
    writing.check_folder(out)
    _check_empty(out)


def _check_empty(out: str) -> None:
    from engine.errors import InputError
    from engine.locks import FOLDER_LOCK

    held = sorted(set(os.listdir(out)) - {FOLDER_LOCK}) if os.path.isdir(out) else []
    if held:
        raise InputError(f"out={out}: the folder is not empty (it holds {held[0]}); name a new or an empty one")


def run() -> None:
    sys.argv[1:] = cli.name_words(sys.argv[1:], ["old"], switches=_SWITCHES)
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
