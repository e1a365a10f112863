"""Audit a training graph: what may be written when the train op is fetched, by which op and of which kind.

--graph is a .meta file, a TF1 SavedModel's folder, or the folder of a finetune run. Nothing of a graph is run. Exit code 1:
there are findings (contradictions, each with a fix); 0: there are none.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from scripts import cli

F = flags.FLAGS

flags.DEFINE_string("graph", None, "A .meta file, a SavedModel's folder or saved_model.pb, or a run directory.")
flags.DEFINE_list("tags", None, "Tags, after commas, of the graph to take, where a SavedModel holds several.")
flags.DEFINE_list(
    "train_op",
    None,
    "Name of the op that is fetched to train (several after commas); unless given, the one that is found.",
)
flags.DEFINE_string(
    "expect_frozen",
    None,
    "A filter, as for finetune's --train: variables that must not be written. Each that may be is a finding.",
)
flags.DEFINE_string("out", None, "A .json file for the audit; unless given, none.")


def main() -> int:
    from engine.errors import InputError

    if not F.graph:
        raise InputError("graph=None: a .meta file, a SavedModel or a run directory is wanted; --help lists the flags")
    cli.check_out(F.out)
    found = _audit(pathlib.Path(F.graph))
    print(f"{found.source}, fetching {found.train_op}: {len(found.variables)} variables\n")
    print(found.table())
    written = sum(row.written for row in found.variables)
    print(f"\n{written} of {len(found.variables)} variables may be written; {len(found.findings)} finding(s)")
    if F.out:
        from engine.files import write_json

        write_json(F.out, found.to_json())
        print(f"written: {F.out}")
    return cli.FAILED if found.findings else cli.DONE


def _audit(path: pathlib.Path) -> Any:
    from compat_v1.graphs import metagraph
    from engine.audit.graph_audit import audit_graph
    from engine.audit.training_audit import audit_run
    from engine.errors import InputError

    if path.is_dir() and (path / "run.json").exists():
        for name in ("train_op", "tags"):
            if F[name].value is not None:
                raise InputError(f"{name}={F[name].value}: a run directory holds no graph to find it in")
        return audit_run(path, expect_frozen=F.expect_frozen)
    graph = metagraph.read(path, tags=F.tags)
    for repair in graph.repairs:
        print(f"repaired: {repair}")
    return audit_graph(graph.facts(), F.train_op, expect_frozen=F.expect_frozen)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
