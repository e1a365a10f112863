"""List the variables that a training graph may write, by which op and why, and report contradictions.

--graph is a .meta file, the folder of a TensorFlow 1 SavedModel, a graph.pbtxt, or the directory of a finetune run.
Nothing in a graph is run. The exit code is 1 if there are findings (each comes with a fix), else 0.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "graph": "A .meta file, a SavedModel's folder or saved_model.pb, a graph.pbtxt, or a run directory.",
        "tags": "Comma-separated tags of the graph to audit, where a SavedModel holds several (unless given, the one tagged train).",
        "train_op": "Name of the op that is fetched to train, or several, comma-separated (unless given, the only candidate).",
        "expect_frozen": "A filter, as for finetune's --train, of variables that must not be written; each that may be written is a finding.",
        "out": "A .json file to write (none unless given).",
    },
    {"tags": list, "train_op": list},
)


def main() -> int:
    from engine.errors import InputError

    if not F.graph:
        raise InputError("graph=None: expected --graph=PATH, a .meta file, a SavedModel or a run directory")
    path = pathlib.Path(F.graph)
    is_run = path.is_dir() and (path / "run.json").exists()
    for name in ("train_op", "tags") if is_run else ():
        if F[name].value is not None:
            raise InputError(f"{name}={F[name].value}: not used with a run directory, which holds no graph")
    cli.check_out(F.out)
    cli.import_tensorflow(keras=False)
    found = _audit(path, is_run=is_run)
    print(f"{found.source}, fetching {found.train_op}: {len(found.variables)} variables\n")
    print(found.table())
    written = sum(row.written for row in found.variables)
    print(f"\n{written} of {len(found.variables)} variables may be written; {len(found.findings)} finding(s)")
    if F.out:
        from engine.files import write_json

        write_json(F.out, found.to_json())
        print(f"written: {F.out}")
    return cli.FAILED if found.findings else cli.DONE


def _audit(path: pathlib.Path, *, is_run: bool) -> Any:
    from compat_v1.graphs import metagraph
    from engine.audit.graph_audit import audit_graph
    from engine.audit.training_audit import audit_run

    if is_run:
        return audit_run(path, expect_frozen=F.expect_frozen)
    graph = metagraph.read_metagraph(path, tags=F.tags, training=True)
    for repair in graph.repairs:
        print(f"repaired: {repair}")
    for note in filter(None, [graph.note, graph.unknown_note()]):
        print(f"graph: {note}")
    return audit_graph(graph.facts(F.train_op), F.train_op, expect_frozen=F.expect_frozen)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
