"""Show that damage, kills, full disks and hostile graphs do no harm: a campaign that makes all of it and counts outcomes.

Small valid files are written, damaged and read; runs are killed and resumed; each case runs in a child process within
limits of time and memory. What was found is printed as a table, and every failure with the command that repeats it alone.
The same command goes on where a stopped campaign was (with --out). The exit code is 1 if a case failed.
"""

from __future__ import annotations

import pathlib
import tempfile

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "kinds": "Comma-separated kinds of cases: files (damaged files of every format), kills (SIGKILL and resume), disk (full disks), graphs (hostile graphs), locks (two runs in one folder, planted links), long (steps, evaluations and selections without growth).",
        "cases": "The number of cases of each kind; of long, the number of steps in thousands. With files among several kinds, it is the number of files, and the others do a share of it: kills and disk a case for every 133 files, graphs and long for every 200, locks for every 2500.",
        "seed": "Decides all damage and every moment of a kill.",
        "only": "Repeats one case, as GROUP:SEED:INDEX, with its only kind in --kinds; such as npz:0:17.",
        "seconds": "The seconds that a case may take (by default 20 for files, 90 for graphs, more for those that train).",
        "memory_mib": "The MiB of memory that a case may take besides TensorFlow's own (by default 2048).",
        "workers": "The number of children at a time.",
        "out": "The folder of the results and of the files that are worked on; by default a temporary one, which is deleted.",
    },
    {
        "kinds": ["files"],
        "cases": 500,
        "seed": 0,
        "seconds": int,
        "memory_mib": int,
        "workers": 2,
    },
)


def main() -> int:
    from engine import writing
    from engine.errors import check_range

    from .endurance import campaign

    campaign.check_kinds(F.kinds)
    cli.check_numbers({"cases": (1, 10_000_000), "workers": (1, 64)})
    check_range("seconds", F.seconds, 1)
    check_range("memory_mib", F.memory_mib, 1)
    only = campaign.find_case(F.kinds, F.only) if F.only is not None else None
    if F.out is not None:
        writing.check_folder(F.out)
    cli.import_tensorflow(start=False)
    if F.out is None:
        with tempfile.TemporaryDirectory(prefix="endure-") as folder:
            return _run(pathlib.Path(folder), only)
    pathlib.Path(F.out).mkdir(parents=True, exist_ok=True)
    return _run(pathlib.Path(F.out), only)


def _run(folder: pathlib.Path, only: object) -> int:
    from .endurance import campaign, pool

    kinds = []
    for name in F.kinds:
        kind = campaign.make_kind(name, folder)
        cases = [only] if only is not None else kind.list_cases(campaign.count_cases(F.kinds, name, F.cases), F.seed)
        kinds.append((name, kind, cases))
    limits = None
    if F.seconds is not None or F.memory_mib is not None:
        limits = pool.Limits(F.seconds or pool.Limits.seconds, (F.memory_mib or 2048) << 20)
    found = campaign.run_campaign(
        kinds,  # type: ignore[arg-type]
        folder,
        say=lambda text: print(text, flush=True),
        limits=limits,
        workers=F.workers,
    )
    if only is not None:
        print(f"{found[0].outcome}: {found[0].detail}")
    print(f"\n{campaign.summarise(found)}")
    return cli.FAILED if any(result.failed for result in found) else cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
