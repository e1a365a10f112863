"""Puts deltas onto the weights that a model has, each if these are its base."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from engine.files import FileError, Npz
from engine.porting.apply import load_part
from engine.porting.deltas.record import BaseRecord, digest_weights, find_digits, read_record
from engine.porting.errors import PortError
from engine.porting.ledger import Ledger
from engine.porting.readers.source import TensorSource
from engine.selection.variables import ModelVariables
from engine.text import join_some

_SHOWN = 16  # digits of a whole digest in a message
FORCE = "--force_base puts it onto these weights all the same"


class BaseError(PortError):
    """The weights that a model has are not those that a delta belongs to."""


@dataclass
class Stack:
    """The weights of a model while deltas are put onto them.

    Attributes:
        variables: the model's.
        names: the base and the deltas so far, for messages.
        assigned: the paths that deltas have assigned as they have them.
        force: whether a delta is put also onto weights that it does not belong to.
    """

    variables: ModelVariables
    names: list[str]
    grid: tuple[int, int] | None = None
    force: bool = False
    assigned: set[str] = field(default_factory=set)

    def put(
        self, path: pathlib.Path, view: Callable[[Npz], tuple[TensorSource, Collection[str]]] | None = None
    ) -> tuple[Ledger, str]:
        """Assigns what a delta holds, and returns what became of it, and a text if it was forced.

        ``view`` is called once it is known that the delta belongs here. It returns how the file is seen, and which paths
        are seen other than they are. Raises BaseError if the delta does not belong here, PortError if it is damaged or of
        another model; the model then has what it had before.
        """
        try:
            with Npz(path) as npz:
                record, held, forced = read_record(npz), set(npz.names()), ""
                try:
                    check_base(path, record, self.variables, held=held, base="+".join(self.names))
                    check_order(
                        path, record, self.variables, earlier=self.assigned & held, before=" and ".join(self.names[1:])
                    )
                except BaseError:
                    if not self.force:
                        raise
                    forced = " (forced: it does not belong to these weights)"
                source, changed = (npz, ()) if view is None else view(npz)
                ledger = load_part(self.variables, source, grid=self.grid)
        except FileError as error:
            raise error if isinstance(error, PortError) else PortError(str(error)) from None
        self.assigned |= {loaded.target for loaded in ledger.loaded} - set(changed)
        self.names.append(str(path))
        return ledger, forced


def check_base(
    path: pathlib.Path,
    record: BaseRecord | None,
    variables: ModelVariables,
    *,
    held: Collection[str],
    base: str,
    ignore: Collection[str] = (),
    cast: bool = False,
) -> None:
    """Raises BaseError unless the weights of a model are those that a delta, which holds ``held``, belongs to.

    Args:
        record: what the delta says of its base.
        base: how the present weights are called, for the message.
        ignore: paths that may differ.
        cast: whether the model may have another floating dtype.
    """
    if record is None:
        raise BaseError(
            f"{path}: the file does not say which weights it belongs to, as trained.npz of this version does; if it holds "
            f"all variables of the model, give it alone, otherwise {FORCE}"
        )
    entries = [entry for entry in variables if entry.path not in held]
    now = digest_weights(entries)
    if now == record.sha256:
        return
    differences = record.find_differences(entries, ignore=ignore, cast=cast)
    if (ignore or cast) and not differences:
        return
    raise BaseError(
        f"{path}: it belongs to other weights than {base}. The variables that it does not hold had the digest "
        f"{record.sha256[:_SHOWN]}, and here they have {now[:_SHOWN]}; what differs "
        f"({len(differences)}): {join_some(differences, most=3)}. Give the weights from which that run "
        f"started, with the same model, size of images, precision and seed; {FORCE}"
    )


def check_order(
    path: pathlib.Path, record: BaseRecord | None, variables: ModelVariables, *, earlier: Collection[str], before: str
) -> None:
    """Raises BaseError unless a delta was trained on top of those before it, which have just assigned ``earlier``.

    A delta that holds the same variables as the one before replaces them. Nothing else would show that the order is wrong,
    or that two runs which started from the same weights are taken for one after the other.
    """
    began = {} if record is None else record.began
    other = [
        entry.path
        for entry in variables
        if entry.path in earlier and entry.path in began and find_digits(entry) != began[entry.path]
    ]
    if other:
        raise BaseError(
            f"{path}: it was not trained on top of {before}. Both hold {join_some(other, most=3)}, and its run started from "
            f"other values than {before} has. Give deltas in the order in which they were trained, and leave out one "
            f"that the next does not build on; {FORCE}"
        )
