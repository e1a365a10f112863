"""Writes a name-based checkpoint in bounded memory: in shards, under a temporary name, renamed when all is there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from engine.errors import InputError
from engine.files import PathLike
from engine.porting.readers.checkpoint_file import told

Version = Literal["V1", "V2"]
_V1_TYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")  # what its readers give back
SHARD_BYTES = 1 << 28  # tensors that are in memory together; a larger one is alone


class ExportError(InputError):
    """A checkpoint that cannot be written as asked. Names the tensor or the file."""


class Entry(NamedTuple):
    """One tensor, or one slice of one, to be written.

    Attributes:
        key: of the whole tensor.
        spec: the slice, as SaveV2 takes it; "" for the whole.
        size: in bytes.
        group: entries of one group lie in data files of their own, as in the checkpoint they come from.
        make: gives the value: an array or a tensor.
    """

    key: str
    spec: str
    size: int
    group: int
    make: Callable[[], Any]


def write(prefix: PathLike, entries: Sequence[Entry], *, version: Version = "V2") -> list[pathlib.Path]:
    """Writes the entries in their order; the checkpoint appears whole, or what was there stays.

    Where one of the same name is replaced, its index goes first and comes last: in between there is none, never a mixed
    one. Memory: ``SHARD_BYTES``, or the largest entry.

    Args:
        prefix: without ``.index``; ``DIR/`` for a checkpoint without a name. Its folder is made.
        version: V2; or V1 (``PREFIX``, or ``PREFIX-00000-of-N`` when it is large), which has neither float16 nor bfloat16.

    Returns:
        The files, data first.

    Raises:
        ExportError: nothing to write, a type that V1 has not, or TensorFlow cannot write.
    """
    text = os.fspath(prefix)
    folder, name = pathlib.Path(os.path.dirname(text) or "."), os.path.basename(text)
    if not entries:
        raise ExportError(f"{text}: there is no tensor to write")
    if version == "V1" and not name:
        raise ExportError(f"{text}: a V1 checkpoint is a file, and needs a name")
    shards = list(_shards(entries))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder, name) as place:
            made = (_write_v1 if version == "V1" else _write_v2)(place, name, shards)
            for file, _ in made:
                _flush(file)
            return _move(made, folder, f"{name}.index" if version == "V2" else "", name)
    except OSError as error:
        raise ExportError(f"{text}: cannot be written ({error.strerror or error})") from None


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
    """Files in the temporary folder, each with its name; the index last."""
    prefixes = [f"{place}/shard{number}/x" for number in range(len(shards))]
    for shard, prefix in zip(shards, prefixes, strict=True):
        os.mkdir(os.path.dirname(prefix))
        with _told(shard):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=[entry.key for entry in shard],
                shape_and_slices=[entry.spec for entry in shard],
                tensors=[_tensor(entry) for entry in shard],
            )
    if len(prefixes) > 1:
        os.mkdir(place / "all")
        with _told(shards[0]):
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
                raise ExportError(f"{entry.key}: the V1 format has no {tensor.dtype.name}; V2 has")
        with _told(shard):
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


def _move(made: Sequence[tuple[pathlib.Path, str]], folder: pathlib.Path, index: str, name: str) -> list[pathlib.Path]:
    """Gives the files their names, the index last; data files that an older one had besides go."""
    names = {final for _, final in made}
    if index:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / index)
    for file, final in made:
        os.replace(file, folder / final)
    if index:
        for old in folder.iterdir():
            if old.name.startswith(f"{name}.data-") and old.name not in names:
                old.unlink()
    _flush(folder)
    return [folder / final for _, final in made]


def _flush(path: pathlib.Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def _temporary(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    place = folder / f".{name}.{os.getpid()}.tmp"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _told(shard: Sequence[Entry]) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, TypeError) as error:
        names = ", ".join(entry.key for entry in shard[:3])
        raise ExportError(
            f"{names}{' ...' if len(shard) > 3 else ''}: TensorFlow cannot write it: {told(error)}"
        ) from None
