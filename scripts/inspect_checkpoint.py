"""Show the variables, optimizer slots, averages and damage of a weights file.

The file may be a TensorFlow checkpoint of any version (named by its prefix, any of its files or its folder), .npz,
safetensors, Keras HDF5, or a frozen graph, of which it says what each constant feeds. Every tensor is read. The exit code is 1 if a tensor is damaged (each is named), or if the
file is too damaged to open.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from . import cli

F = flags.FLAGS

cli.define_flags(
    __name__,
    {
        "source": "The prefix, any file or the folder of a checkpoint (TensorFlow 1 or 2, V1 or V2 format, SavedModel), or an .npz, safetensors or Keras HDF5 file, or a frozen graph (.pb, .pbtxt).",
        "filter": "Show only the variables whose whole name matches this regular expression, for example 'bert/.*'.",
        "merge_parts": "Show NAME/part_0, NAME/part_1 and so on as one tensor NAME.",
        "verify": "Read every tensor to find damage; with --noverify, only names, shapes and scalars are read.",
        "out": "A .json file to write (none unless given).",
    },
    {"merge_parts": True, "verify": True},
)

_SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5", ".ckpt", ".pb", ".pbtxt")


def main() -> int:
    from engine.errors import InputError
    from engine.files import FileError, write_json
    from engine.text import compile_pattern

    if F.source is None:
        raise InputError("source=None: expected --source=PATH, the weights file")
    compile_pattern(F.filter or "", name="filter")
    cli.check_out(F.out)
    cli.import_tensorflow(keras=False)
    from compat_v1.checkpoints.inventory import take_inventory
    from compat_v1.checkpoints.reader import open_source

    try:
        opened = open_source(F.source, merge_parts=F.merge_parts)
    except FileError as error:
        if not _exists(F.source):
            raise
        print(f"inspect_checkpoint: {error}", file=sys.stderr)
        return cli.FAILED
    with opened as source:
        found = take_inventory(source, pattern=F.filter, verify_all=F.verify, on_read=_show_progress(source))
        print(found.to_text())
        if F.out:
            write_json(F.out, found.to_json())
            print(f"written: {F.out}")
    return cli.FAILED if found.damaged else cli.DONE


def _exists(path: str) -> bool:
    """Returns whether there is a weights file, so that one that cannot be opened is damaged."""
    from engine.files import FileError
    from engine.porting.readers.locate import locate

    file = pathlib.Path(path)
    try:
        return locate(path) is not None or (file.is_file() and file.suffix in _SUFFIXES)
    except FileError:
        return file.is_file()


def _show_progress(source: Any) -> Callable[[str], None]:
    """Returns a function to be called with the name of each tensor read: every 2 s it prints a line on stderr."""
    from compat_v1.checkpoints.inventory import count_bytes

    total, done, shown = sum(count_bytes(source, name) for name in source.names()), 0, time.monotonic()

    def on_read(name: str) -> None:
        nonlocal done, shown
        done += count_bytes(source, name)
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"read {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr, flush=True)

    return on_read


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
