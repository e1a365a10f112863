"""Show what a weights file holds: names, shapes, dtypes, slots and averages under their variables, damage.

Takes TensorFlow checkpoints old and new (by prefix, any of their files, or folder), .npz, safetensors and Keras
HDF5. Every tensor is read, one at a time; exit code 1 when any is damaged, each then named, or when the file
is there but too damaged to open.
"""

from __future__ import annotations

import math
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from scripts import cli

F = flags.FLAGS

flags.DEFINE_string(
    "source",
    None,
    "A checkpoint's prefix, one of its files or its folder (TensorFlow 1 and 2, V1 and V2 format, SavedModel), or an .npz, safetensors or Keras HDF5 file.",
)
flags.DEFINE_string(
    "filter", None, "Show only variables whose whole name matches this regular expression, as 'bert/.*'."
)
flags.DEFINE_bool("merge_parts", True, "Show NAME/part_0, NAME/part_1 ... as one tensor NAME.")
flags.DEFINE_bool("verify", True, "Read every tensor to find damage; without it, only names and shapes are read.")
flags.DEFINE_string("out", None, "A .json file for what is shown; unless given, none.")

_SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5", ".ckpt")
_MOST_SCALARS = 20  # values printed; a file may hold thousands of scalars


def main() -> int:
    from compat_v1.checkpoints.families import families
    from compat_v1.checkpoints.reader import open_source
    from engine import files
    from engine.errors import InputError
    from engine.files import FileError

    if F.source is None:
        raise InputError("source: --source=PATH says which file")
    chosen = _pattern(F.filter)
    cli.check_out(F.out)
    try:
        opened = open_source(F.source, merge_parts=F.merge_parts)
    except FileError as error:
        if not _is_there(F.source):
            raise
        print(f"inspect_checkpoint: {error}", file=sys.stderr)
        return cli.FAILED
    with opened as source:
        found = families(source)
        shown = [family for family in found.variables if chosen.fullmatch(family.name)]
        if not shown and F.filter is not None:
            raise InputError(f"filter={F.filter!r}: it matches none of the {len(found.variables)} variables")
        bad = _verify(source) if F.verify else {}
        print(f"{source.path}: {_kind(source)}\n")
        _table(source, shown, bad)
        _state(source, found, bad)
        _totals(source, found, shown)
        _damage(source, bad)
        if F.out:
            files.write_json(F.out, _json(source, found, shown, bad))
            print(f"written: {F.out}")
    return cli.FAILED if bad else cli.DONE


def _pattern(text: str | None) -> re.Pattern[str]:
    from engine.errors import InputError

    try:
        return re.compile(".*" if text is None else text)
    except re.error as error:
        raise InputError(f"filter={text!r}: no regular expression ({error})") from None


def _is_there(path: str) -> bool:
    """True where weights lie, so that what cannot be opened is damaged."""
    from compat_v1.checkpoints.locate import locate
    from engine.files import FileError

    file = pathlib.Path(path)
    try:
        return locate(path) is not None or (file.is_file() and file.suffix in _SUFFIXES)
    except FileError:
        return file.is_file()


def _verify(source: Any) -> dict[str, str]:
    """Damaged tensor -> reason. On a long way, a line on stderr says how far it is."""
    from engine.porting.readers import verify

    total, done, shown = sum(_bytes(source, name) for name in source.names()), 0, time.monotonic()

    def tell(name: str) -> None:
        nonlocal done, shown
        done += _bytes(source, name)
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"read {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr, flush=True)

    return {damage.name: damage.reason for damage in verify.damaged(source, tell=tell)}


def _bytes(source: Any, name: str) -> int:
    return math.prod(source.shape(name)) * source.dtype(name).itemsize


def _kind(source: Any) -> str:
    kinds = {
        "V1Checkpoint": "TensorFlow checkpoint, V1 format",
        "Checkpoint": "TensorFlow checkpoint, V2 format",
        "Npz": ".npz",
        "Safetensors": "safetensors",
        "KerasH5": "Keras HDF5",
    }
    inner = getattr(source, "source", source)
    name = type(inner).__name__
    return kinds.get(name, name)


# ---- what is printed


def _table(source: Any, shown: list[Any], bad: dict[str, str]) -> None:
    rows = [row for family in shown for row in _rows(source, family, bad)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for name, shape, dtype, size, note in rows:
        line = f"{name:{widths[0]}}  {shape:{widths[1]}}  {dtype:{widths[2]}}  {size:>{widths[3]}}  {note}"
        print(line.rstrip())


def _rows(source: Any, family: Any, bad: dict[str, str]) -> Iterator[tuple[str, str, str, str, str]]:
    """A variable, and a line for what belongs to it: name, shape, dtype, bytes, notes."""
    shape = "x".join(map(str, family.shape)) or "scalar"
    notes = [_parts(source, family.name), "DAMAGED" if family.name in bad else ""]
    yield family.name, shape, family.dtype.name, f"{_bytes(source, family.name):,}", "  ".join(filter(None, notes))
    belongs = []
    if family.ema is not None:
        usual = family.ema == f"{family.name}/ExponentialMovingAverage"
        belongs.append(("average", {"ExponentialMovingAverage" if usual else family.ema: family.ema}))
    belongs += [(f"slots of {kind}", held) for kind, held in family.slots.items()]
    belongs += [("with it", family.others)] if family.others else []
    for title, held in belongs:
        names = ", ".join(held)
        damaged = [slot for slot, name in held.items() if name in bad]
        note = f"DAMAGED: {', '.join(damaged)}" if damaged else ""
        dtypes = ", ".join(dict.fromkeys(source.dtype(name).name for name in held.values()))
        yield f"    {title}: {names}", "", dtypes, f"{sum(_bytes(source, name) for name in held.values()):,}", note


def _parts(source: Any, name: str) -> str:
    """How a partitioned variable is stored, "" for one in one piece."""
    merged = getattr(source, "parts", {}).get(name)
    if merged is not None:
        axis = f"axis {merged.axis}" + (", assumed: all have one shape" if merged.assumed else "")
        return f"{len(merged.names)} parts ({merged.names[0]} ...; {axis})"
    pieces = source.pieces(name) if hasattr(source, "pieces") else ()
    return f"{len(pieces)} slices" if len(pieces) > 1 else ""


def _state(source: Any, found: Any, bad: dict[str, str]) -> None:
    """Scalars of the optimizer, and other scalars, with their values."""
    names = [name for group in found.state.values() for name in group]
    own = [family.name for family in found.variables if family.shape == () and family.name not in names]
    scalars = [*names, *own][:_MOST_SCALARS]
    if scalars:
        print("\nscalars:")
    for name in scalars:
        value = "DAMAGED" if name in bad else _value(source, name)
        print(f"    {name} = {value}  ({source.dtype(name).name})")
    if len(names) + len(own) > len(scalars):
        print(f"    ... and {len(names) + len(own) - len(scalars)} more")


def _value(source: Any, name: str) -> str:
    from engine.files import FileError

    try:
        value = source.read(name)[()]
    except FileError:
        return "cannot be read"
    return f"{value:g}" if value.dtype.kind == "f" else str(value)


def _totals(source: Any, found: Any, shown: list[Any]) -> None:
    elements = sum(math.prod(family.shape) for family in found.variables)
    sizes = [_bytes(source, name) for name in source.names()]
    averages = sum(family.ema is not None for family in found.variables)
    kinds = [f"slots of {kind} for {count}" for kind, count in found.kinds().items()]
    said = [f"{len(found.variables)} variables of {elements:,} elements", *kinds]
    said += [f"averages of {averages}"] if averages else []
    if len(shown) < len(found.variables):
        said.append(f"{len(shown)} shown")
    print(f"\n{', '.join(said)}; {len(sizes)} tensors of {sum(sizes):,} bytes")
    if merged := getattr(source, "parts", {}):
        print(f"{len(merged)} tensors were merged from {sum(len(parts.names) for parts in merged.values())} parts")
    others = source.others() if hasattr(source, "others") else []
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        print(f"skipped, no numbers: {len(others)} ({', '.join(others[:5])}{more})")


def _damage(source: Any, bad: dict[str, str]) -> None:
    if not F.verify:
        print("damage: not looked for (--verify)")
    elif bad:
        print(f"\ndamage: {len(bad)} of {len(source.names())} tensors cannot be read")
        for reason in bad.values():
            print(f"    {reason.removeprefix(f'{source.path}: ')}")
    elif source.checksums:
        print("damage: none; every tensor was read")
    else:
        print("damage: none found; every tensor was read, but this kind of file has no checksums")


def _json(source: Any, found: Any, shown: list[Any], bad: dict[str, str]) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "kind": _kind(source),
        "variables": [
            {
                "name": family.name,
                "shape": list(family.shape),
                "dtype": family.dtype.name,
                "bytes": _bytes(source, family.name),
                "ema": family.ema,
                "slots": family.slots,
                "others": family.others,
            }
            for family in shown
        ],
        "state": {role: list(names) for role, names in found.state.items()},
        "damaged": bad,
        "verified": F.verify,
    }


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
