"""Show which variables of two weights files differ, by how much, in which parts of the model.

    frostline diff A B

A and B are .npz, safetensors or Keras HDF5 files, checkpoints of TensorFlow, or BASE+RUN/trained.npz. The exit code is 0 if
both hold the same bits under the same names, 1 if they differ, and 2 if one cannot be read.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "first": "The first file, A.",
        "second": "The second file, B.",
        "rules": "Which tensor of a base becomes which variable, for BASE+DELTA (default: chosen by the names in the base).",
        "force_base": "Put a delta also onto weights that it does not belong to.",
        "show": "How many of the variables that differ are listed.",
        "out": "A .json file with all differences (none unless given).",
    },
    {"force_base": False, "show": 20},
)


def main() -> int:
    from engine.errors import InputError, check_range
    from engine.porting.deltas.chain import parse_chain

    for name in ("first", "second"):
        if F[name].value is None:
            raise InputError(f"{name}=None: expected two files; type frostline diff A B")
        parse_chain(F[name].value, name=name)
    check_range("show", F.show, 0)
    cli.check_out(F.out)
    cli.import_tensorflow(keras=False)
    from engine.porting.differences import compare_files, to_json
    from engine.runs.progress import show_each

    with contextlib.ExitStack() as stack:
        one, other = _pair(*_choose(*(_open(F[name].value, name, stack) for name in ("first", "second"))))
        with show_each(len(set(one.names()) | set(other.names())), "compared") as tell:
            found = compare_files(one, other, on_read=tell)
    differing = [difference for _, difference, _ in found if difference is not None]
    if differing:
        _print_differences(found, differing)
    else:
        print(f"equal: {len(found)} tensors have the same names, shapes, dtypes and bits")
    cli.write_out(to_json(found))
    return cli.FAILED if differing else cli.DONE


def _open(text: str, name: str, stack: contextlib.ExitStack) -> list[Any]:
    """The tensors of a file; for a base with deltas under the names of the base, and under the paths of variables."""
    from engine.errors import InputError
    from engine.porting import open_tensors
    from engine.porting.deltas.chain import WORDS, parse_chain
    from engine.porting.deltas.merge import merge
    from engine.porting.whole_file import VariablesAsTensors, WholeFile

    chain = parse_chain(text, name=name)
    if chain.base in WORDS:
        raise InputError(f"{name}={text!r}: expected a file, or BASE+DELTA with a file as its base")
    source = stack.enter_context(open_tensors(chain.base))
    if not chain.deltas:
        return [source]
    merged = merge(source, chain.deltas, rules=F.rules, force=F.force_base)
    for line in merged.texts:
        print(f"{name + ':':8} {line}")
    return [WholeFile(source, merged.variables, merged.rules), VariablesAsTensors(merged.variables)]


def _choose(ones: list[Any], others: list[Any]) -> tuple[Any, Any]:
    """The pair with the most names in common."""
    pairs = [(one, other) for one in ones for other in others]
    return max(pairs, key=lambda pair: len(set(pair[0].names()) & set(pair[1].names())))


def _pair(one: Any, other: Any) -> tuple[Any, Any]:
    """The pair; where the model of one file is nested in that of the other, the names of the latter are those within."""
    from engine.porting.differences import Nested, find_nesting

    if (prefix := find_nesting(other, one)) is not None:
        print(f"names:   of the second, those under {prefix} are compared without it")
        return one, Nested(other, prefix)
    if (prefix := find_nesting(one, other)) is not None:
        print(f"names:   of the first, those under {prefix} are compared without it")
        return Nested(one, prefix), other
    return one, other


def _print_differences(found: Sequence[Any], differing: Sequence[Any]) -> None:
    from engine.porting.differences import group_differences
    from engine.text import table

    head = ("part", "tensors", "differ", "largest", "relative")
    body = [
        (group.name, str(group.tensors), str(len(group.differing)), f"{group.largest:.3g}", f"{group.relative:.3g}")
        for group in group_differences(found)
        if group.differing
    ]
    print(table([head, *body], right={1, 2, 3, 4}))
    print(f"\n{len(differing)} of {len(found)} tensors differ:")
    rows = [("tensor", "what", "elements", "largest", "relative")]
    for each in differing[: F.show]:
        numbers = (f"{each.elements:,} of {each.size:,}", f"{each.largest:.3g}", f"{each.relative:.3g}")
        rows.append((each.name, each.what, *(numbers if each.elements else ("", "", ""))))
    if F.show:
        print(table(rows, right={2, 3, 4}))
    if len(differing) > F.show:
        print(f"... and {len(differing) - F.show} more (--show=N lists more, --out=FILE.json keeps all)")


def run() -> None:
    sys.argv[1:] = cli.name_words(sys.argv[1:], ["first", "second"], switches=("--force_base", "--noforce_base"))
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
