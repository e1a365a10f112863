"""Writes a name-based checkpoint in bounded memory: in shards, in a temporary folder that they leave at the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from compat_v1.checkpoints import replace
from engine import writing
from engine.errors import InputError
from engine.files import PathLike
from engine.porting.readers.checkpoint_file import describe_error
from engine.text import join_some

Version = Literal["V1", "V2"]
_V1_TYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")  # what its readers return
SHARD_BYTES = 1 << 28  # of tensors that are in memory together; a larger one has a shard of its own


class ExportError(InputError):
    """A checkpoint that cannot be written. The message names the tensor or the file."""


class Entry(NamedTuple):
    """One tensor, or a slice of one, to write; ``make`` returns the value as an array or a tensor.

    Attributes:
        key, size: the key of the whole tensor, and the size in bytes of what is written.
        spec: the slice as SaveV2 expects it; "" for the whole.
        group: the number of its group; each group has its own data files, as in the checkpoint it comes from.
    """

    key: str
    spec: str
    size: int
    group: int
    make: Callable[[], Any]


def write_checkpoint(prefix: PathLike, entries: Sequence[Entry], *, version: Version = "V2") -> list[pathlib.Path]:
    """Writes the entries in their order, to a checkpoint that appears as a whole; returns the files, data first.

    If a checkpoint of the same name is replaced, either the old or the new one is whole at any moment. Takes
    ``SHARD_BYTES`` of memory, or as much as the largest entry. The prefix is without ``.index``, and ``DIR/`` for a
    checkpoint without a name; its folder is created. V1 (``PREFIX``, or ``PREFIX-00000-of-N`` if large) has neither
    float16 nor bfloat16.

    Raises:
        ExportError: there is nothing to write, V1 does not have a dtype, or TensorFlow cannot write.
        InTheWayError: a checkpoint of this name cannot be replaced as a whole.
        NoSpaceError: the disk is full.
    """
    text = os.fspath(prefix)
    folder, name = pathlib.Path(os.path.dirname(text) or "."), os.path.basename(text)
    if not entries:
        raise ExportError(f"{text}: there is no tensor to write")
    if version == "V1" and not name:
        raise ExportError(f"{text}: a V1 checkpoint is a file and needs a name")
    shards = list(_shards(entries))
    replace.check_form(text, version=version, shards=len(shards))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = name or "checkpoint"
        writing.sweep(folder, own.__eq__)
        wanted = sum(entry.size for entry in entries)
        with writing.explain_no_space(f"{text}", wanted), writing.temporary_folder(folder / own) as place:
            made = (_write_v1 if version == "V1" else _write_v2)(place, name, shards)
            for file, _ in made:
                writing.flush(file)
            return replace.move_in(made, folder, name, place=place)
    except writing.NoSpaceError:
        raise
    except OSError as error:
        raise ExportError(f"{text}: the checkpoint cannot be written ({error.strerror or error})") from None


def _shards(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    now: list[Entry] = []
    size = 0
    for entry in entries:
        if now and (entry.group != now[0].group or size + entry.size > SHARD_BYTES):
            yield now
            now, size = [], 0
        now.append(entry)
        size += entry.size
    yield now


def _write_v2(place: pathlib.Path, name: str, shards: Sequence[list[Entry]]) -> list[tuple[pathlib.Path, str]]:
    """Writes files to the temporary folder; returns each with its final name, the index last."""
    prefixes = [f"{place}/shard{number}/x" for number in range(len(shards))]
    for shard, prefix in zip(shards, prefixes, strict=True):
        os.mkdir(os.path.dirname(prefix))
        with _describing(shard):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=[entry.key for entry in shard],
                shape_and_slices=[entry.spec for entry in shard],
                tensors=[_tensor(entry) for entry in shard],
            )
    if len(prefixes) > 1:
        os.mkdir(place / "all")
        with _describing(shards[0]):
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=prefixes, destination_prefix=f"{place}/all/x", delete_old_dirs=False
            )
    done = place / ("all" if len(prefixes) > 1 else "shard0")
    files = sorted(done.iterdir(), key=lambda file: (file.suffix == ".index", file.name))
    return [(file, name + file.name.removeprefix("x")) for file in files]


def _write_v1(place: pathlib.Path, name: str, shards: Sequence[list[Entry]]) -> list[tuple[pathlib.Path, str]]:
    made = []
    for number, shard in enumerate(shards):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        data = [_tensor(entry) for entry in shard]
        for entry, tensor in zip(shard, data, strict=True):
            if tensor.dtype.name not in _V1_TYPES:
                raise ExportError(f"{entry.key}: the V1 format does not have {tensor.dtype.name}; use V2")
        with _describing(shard):
            tf.raw_ops.SaveSlices(
                filename=f"{place}/x{suffix}",
                tensor_names=[entry.key for entry in shard],
                shapes_and_slices=[entry.spec for entry in shard],
                data=data,
            )
        made.append((place / f"x{suffix}", name + suffix))
    return made


def _tensor(entry: Entry) -> Any:
    value = entry.make()
    with tf.device("CPU:0"):
        return tf.raw_ops.DeepCopy(x=value) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _describing(shard: Sequence[Entry]) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, TypeError) as error:
        if (full := writing.is_full(str(error))) is not None:
            raise OSError(full, os.strerror(full)) from None
        names = join_some([entry.key for entry in shard], most=3)
        raise ExportError(f"{names}: TensorFlow cannot write this: {describe_error(error)}") from None
