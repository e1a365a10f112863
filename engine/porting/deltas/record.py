"""What a delta says of its base: digests of the weights that it does not hold, in the text ``base.json`` beside its arrays.

A delta belongs to one base. With any other weights in the place of what it does not hold, the model would compute
something that no run has measured. So ``base.json`` has, for each variable that the delta lacks, dtype, shape and the
first 12 digits of its digest (engine.digests), and one SHA-256 over the whole digests. Of the variables that it holds, it
has the digests of the values from which the run started: they tell whether an earlier delta is really the one before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import tensorflow as tf

from engine.digests import digest
from engine.files import FileError, Npz, PathLike
from engine.selection.variables import NamedVariable

_MEMBER = "base.json"
_FORMAT = 1
_DIGITS = 12  # of a variable's digest: 48 bits, which name a difference that the whole digest has found
_FLOATING = ("float16", "bfloat16", "float32", "float64")
_LINE = re.compile(r"(\w+) \[((?:\d+(?:, \d+)*)?)\] ([0-9a-f]{12})")


@dataclass(frozen=True)
class Held:
    """One variable of a base: its dtype and shape, and the beginning of its digest."""

    dtype: str
    shape: tuple[int, ...]
    digits: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class BaseRecord:
    """The base of a delta.

    Attributes:
        sha256: one digest of all variables that the delta does not hold.
        variables: each of them, by path.
        began: for each variable that the delta holds, the beginning of the digest of the value from which the run
            started; empty if the run did not keep them.
    """

    sha256: str
    variables: Mapping[str, Held]
    began: Mapping[str, str] = field(default_factory=dict)

    def find_differences(
        self, entries: Iterable[NamedVariable], *, ignore: Collection[str] = (), cast: bool = False
    ) -> list[str]:
        """Says, a line for each, which variables are not those of the base; those with a path in ``ignore`` may differ.

        With ``cast``, a variable of another floating dtype is compared in the dtype of the base.

        Those that only one side has, or that have another shape or dtype, come first.
        """
        now = {entry.path: entry for entry in entries if entry.path not in ignore}
        lines, values = [f"{path}: its base does not have it" for path in now if path not in self.variables], []
        for path in sorted(self.variables.keys() - set(ignore)):
            wanted = self.variables[path]
            if path not in now:
                lines.append(f"{path}: the model does not have it")
                continue
            found = hold(now[path], wanted.dtype if cast else None)
            if str(found) != str(wanted):
                lines.append(f"{path}: {found}, but {wanted} in its base")
            elif found.digits != wanted.digits:
                values.append(f"{path}: other values")
        return lines + values


def hold(entry: NamedVariable, dtype: str | None = None) -> Held:
    """Describes a variable with its present value, as it would be in another floating ``dtype``."""
    value = entry.variable.numpy()
    if dtype is not None and entry.variable.dtype.is_floating and dtype in _FLOATING:
        value = value.astype(tf.as_dtype(dtype).as_numpy_dtype)
    return Held(value.dtype.name, tuple(value.shape), digest(entry.path, value)[:_DIGITS])


def find_digits(entry: NamedVariable) -> str:
    """The beginning of the digest of a variable's present value, as ``BaseRecord.began`` has it."""
    return hold(entry).digits


def digest_weights(entries: Iterable[NamedVariable]) -> str:
    """One SHA-256 over the digests of variables; their order does not matter."""
    return _digest_all({entry.path: digest(entry.path, entry.variable.numpy()) for entry in entries})


def take_record(
    entries: Iterable[NamedVariable], held: Collection[str], began: Mapping[str, str] | None = None
) -> BaseRecord:
    """Describes the variables of a model, as they are now, that a delta with the paths ``held`` leaves to its base."""
    whole, variables = {}, {}
    for entry in entries:
        if entry.path not in held:
            value = entry.variable.numpy()
            whole[entry.path] = digest(entry.path, value)
            variables[entry.path] = Held(value.dtype.name, tuple(value.shape), whole[entry.path][:_DIGITS])
    began = {path: digits[:_DIGITS] for path, digits in (began or {}).items() if path in held}
    return BaseRecord(_digest_all(whole), variables, began)


def as_texts(record: BaseRecord) -> dict[str, str]:
    """The text for ``engine.files.write_npz`` that keeps the record."""
    variables = {path: f"{found} {found.digits}" for path, found in record.variables.items()}
    body = {"format": _FORMAT, "sha256": record.sha256, "variables": variables, "began": dict(record.began)}
    return {_MEMBER: json.dumps(body, ensure_ascii=False, separators=(",", ":"))}


def read_record(npz: Npz) -> BaseRecord | None:
    """What a file says of its base; None if it says nothing, as whole weights and deltas of older versions do.

    Raises FileError if the text is damaged, or of another version.
    """
    if _MEMBER not in npz.others():
        return None
    try:
        body = json.loads(npz.text(_MEMBER))
        if body["format"] != _FORMAT:
            raise FileError(f"{npz.path}: {_MEMBER} has format {body['format']!r}; this version reads {_FORMAT}")
        variables = {}
        for path, line in body["variables"].items():
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{path}: {line[:60]!r}")
            shape = tuple(int(length) for length in match[2].split(", ") if length)
            variables[path] = Held(match[1], shape, match[3])
        began = {str(path): str(digits) for path, digits in body["began"].items()}
        if not re.fullmatch(r"[0-9a-f]{64}", body["sha256"]):
            raise ValueError("sha256")
        return BaseRecord(body["sha256"], variables, began)
    except FileError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{npz.path}: {_MEMBER}: damaged ({str(error)[:100]})") from None


def read_record_at(path: PathLike) -> BaseRecord | None:
    """What a file at a path says of its base; raises FileError as ``read_record``, or if it is not an .npz file."""
    with Npz(path) as npz:
        return read_record(npz)


def _digest_all(digests: Mapping[str, str]) -> str:
    hasher = hashlib.sha256()
    for path in sorted(digests):
        hasher.update(f"{path}\0{digests[path]}\0".encode())
    return hasher.hexdigest()
