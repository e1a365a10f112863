"""Loads a weights file of Keras into a model: what belongs together is decided by names, and the graphs are compared.

Every layer of the model, its head aside, must find its weights in the file, or nothing is changed and the error says what
differs. The head starts anew where the file has another one.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from engine.data import Normalise
from engine.files import FileError
from engine.models.keras import file_leaves, file_values, safe_loading
from engine.models.keras.graph_differences import compare_graphs, differing_layers
from engine.models.keras.leaves import Leaf, Leaves, describe_model, with_modern_names
from engine.models.keras.matching import Match, Pairs, map_arrays, match_leaves
from engine.models.spec import ModelSpecError
from engine.porting import PortError
from engine.porting.both_sides import Differences
from engine.porting.readers.h5_file import KerasH5
from engine.selection.variables import name_variables
from engine.text import join_some, listed

WAYS_OUT = (
    "--model=file:FILE takes the graph from a file that holds the whole model; py:module:factory builds it as it was; "
    "--rules=FILE loads by rules of your own, without this comparison"
)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A file's leaves, and how its values get into the model's leaves."""

    leaves: Leaves
    assign: file_values.Assign
    ours: Leaves
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Fit:
    """What a file gives a model: pairs of leaves for the model's body and for its head ([] where that starts anew)."""

    body: Pairs
    head: Pairs
    notes: tuple[str, ...]


def load_file(
    path: str,
    network: Any,
    *,
    backbone: Any | None = None,
    hint: str = "",
    images: Normalise | None = None,
    whole: bool = False,
) -> str | None:
    """Loads a file into a Keras model and describes what it loaded; None if the file is not in a format of Keras.

    Args:
        path: a ``.keras`` file, an ``.h5`` file of weights or of a whole model, or the prefix of a checkpoint of Keras 2.
        network: the model, a graph of layers.
        backbone: the part of it below its head, if it has been built from two; only for the description.
        hint: a way to build the model with another graph, for the message about a file that was made for one.
        images: how the images of the network are prepared; a file may do so by layers of its own.
        whole: whether the file must hold the model's own head too.

    Raises:
        PortError: the file cannot be read or does not fit; the model has not changed.
    """
    try:
        ours = describe_model(network)
        ours = Leaves(tuple(replace(leaf, head=False) for leaf in ours)) if whole else ours
        with _open(path, ours, network) as opened:
            if opened is None:
                return None
            given: dict[str, Any] = {"backbone": backbone, "hint": hint, "images": images}
            theirs = with_modern_names(opened.leaves, opened.ours)
            fit = find_fit(opened.ours, theirs, where=path if whole else f"weights={path!r}", **given)
            opened.assign([*fit.body, *fit.head])
    except (FileError, ModelSpecError) as error:
        raise PortError(str(error)) from None
    name_variables(network).refresh()
    fresh = [leaf.full_name for leaf in opened.ours.weighted if leaf.head] if not fit.head else []
    what = "the model" if not fresh else "the backbone" if backbone is not None else f"the model but {join_some(fresh)}"
    notes = [*opened.notes, *fit.notes]
    return f"{pathlib.Path(path).name}, all of {what}{'; new head' if fresh else ''}{''.join(f'; {n}' for n in notes)}"


def find_fit(
    ours: Leaves,
    theirs: Leaves,
    *,
    where: str,
    backbone: Any | None = None,
    hint: str = "",
    images: Normalise | None = None,
) -> Fit:
    """Decides what of a file belongs where; PortError says what does not fit."""
    part = "the model" if backbone is None else "the backbone"
    body = [leaf for leaf in ours.weighted if not leaf.head]
    head = [leaf for leaf in ours.weighted if leaf.head]
    if not body:
        body, head, part = head, [], "the model"
    match = match_leaves(body, theirs)
    pairs = match.pairs(body)
    lost = _compare(body, theirs, match, pairs)
    if lost or match.problems or len(pairs) < len(body):
        apart = [leaf.full_name for leaf in body if id(leaf) not in match.found]
        problems = match.problems or ([] if lost else [f"nothing in the file tells {join_some(apart, most=3)} apart"])
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise PortError(f"{where} does not fit {part}:{lost}{reasons}")
    used = {id(leaf) for _, leaf in pairs}
    left = [leaf for leaf in theirs.weighted if id(leaf) not in used]
    found, why = _match_head(ours, theirs, head, left, pairs, images)
    notes = [*match.notes, *why]
    before, inside = _sort_leftovers(theirs, left if not found else [], pairs)
    if inside:
        lines = tuple(f"{leaf.full_name}/{n} {list(shape)}" for leaf in inside for n, shape in leaf.arrays.items())
        raise PortError(f"{where} does not fit {part}:{Differences((), lines, ())}\n  {WAYS_OUT}")
    named = all(leaf.name or leaf.kind for leaf in theirs)
    scope = [leaf for leaf in ours if not leaf.head or not head or (found and named)]
    new_head = bool(head and not found) or (backbone is not None and not (found and named))
    whole = len(used) + len(found) == len(theirs.weighted)
    graphs = compare_graphs(scope, theirs, pairs, head=found, new_head=new_head, whole=whole, images=images)
    if graphs.lines:
        raise PortError(
            f"{where} was made for another graph than {part}, though its weights fit:"
            f"{listed('layers that differ', graphs.lines)}\n  {hint or WAYS_OUT}"
        )
    unsure = [mine.full_name for mine, leaf in pairs if not map_arrays(mine, leaf)[1]]
    if unsure:
        notes.append(f"the arrays of {join_some(unsure, most=2)} by position, since their names differ")
    if before:
        notes.append(f"left out of the file, since it comes before {part}: {join_some(before, most=3)}")
    return Fit(pairs, found, (*notes, *graphs.notes))


def _compare(body: list[Leaf], theirs: Leaves, match: Match, pairs: Pairs) -> Differences:
    """What is missing, unused or of another shape; a file's layers after the model's own are none of these."""
    used = {id(leaf) for _, leaf in pairs}
    left = [leaf for leaf in theirs.weighted if id(leaf) not in used]
    missing, wrong, extra = list[str](), list[str](), list[Leaf]()
    by_name = {leaf.name: leaf for leaf in left if leaf.rank is None}
    by_key = {leaf.key.rpartition("/")[2]: leaf for leaf in left if leaf.key}
    for mine in body:
        other = match.found.get(id(mine))
        if other is None and (other := by_name.get(mine.name) or by_key.get(mine.key.rpartition("/")[2])) is not None:
            extra.append(other)
        if other is None:
            missing += [f"{mine.full_name}/{name} {list(shape)}" for name, shape in mine.arrays.items()]
        elif map_arrays(mine, other)[0] is None:
            wrong += _compare_arrays(mine, other)
    taken = {id(leaf) for leaf in extra}
    unused = [
        f"{leaf.full_name}/{n} {list(s)}" for leaf in left if id(leaf) not in taken for n, s in leaf.arrays.items()
    ]
    return Differences(tuple(missing), tuple(unused) if missing or wrong else (), tuple(wrong))


def _compare_arrays(mine: Leaf, theirs: Leaf) -> list[str]:
    if len(mine.arrays) != len(theirs.arrays):
        return [f"{mine.full_name}: {len(mine.arrays)} arrays in the model, {len(theirs.arrays)} in the file"]
    shapes = zip(mine.arrays.items(), theirs.arrays.values(), strict=True)
    return [f"{mine.full_name}/{n}: {list(a)} in the model, {list(b)} in the file" for (n, a), b in shapes if a != b]


def _match_head(
    ours: Leaves, theirs: Leaves, head: list[Leaf], left: list[Leaf], body: Pairs, images: Normalise | None
) -> tuple[Pairs, list[str]]:
    """The head's leaves with those that the file has besides the body's, if these are exactly such a head; else why not."""
    if not head or len(left) != len(head):
        return [], []
    match = match_leaves(head, replace(theirs, all=tuple(left)))
    pairs = match.pairs(head)
    if match.problems or len(pairs) < len(head) or any(map_arrays(*pair)[0] is None for pair in pairs):
        return [], []
    differing = differing_layers(ours, theirs, [*body, *pairs], images=images)
    if not differing:
        return pairs, []
    return [], [f"the file's own head is left out, since layers without weights differ: {join_some(differing, most=3)}"]


def _sort_leftovers(theirs: Leaves, left: list[Leaf], pairs: Pairs) -> tuple[list[str], list[Leaf]]:
    """The file's layers that the model does not have: those before its own, and those among its own, which do not fit."""
    used = {id(leaf) for _, leaf in pairs}
    paths = {leaf.path for _, leaf in pairs}
    places = [number for number, leaf in enumerate(theirs) if id(leaf) in used]
    numbers: dict[str, int] = {}
    for _, leaf in pairs:
        numbers[leaf.kind] = max(numbers.get(leaf.kind, -1), file_leaves.number_of(leaf.key))
    before, inside = list[str](), list[Leaf]()
    for place, leaf in enumerate(theirs):
        if leaf not in left or (theirs.ordered and place > max(places)):
            continue
        if theirs.ordered and place < min(places) and leaf.path not in paths:
            before.append(leaf.full_name)
        elif theirs.ordered or (leaf.path in paths and file_leaves.number_of(leaf.key) < numbers.get(leaf.kind, -1)):
            inside.append(leaf)
        elif "normalization" in leaf.kind and leaf.path not in paths:
            before.append(leaf.full_name)
    return before, inside


@contextlib.contextmanager
def _open(path: str, ours: Leaves, network: Any) -> Iterator[_Opened | None]:
    name = path.lower()
    if name.endswith(".keras"):
        source = describe_model(safe_loading.load_model(path, "weights"))
        yield _Opened(source, file_values.copy_variables, ours)
    elif name.endswith((".h5", ".hdf5")):
        with KerasH5(path) as file:
            if not file.strings("", "layer_names"):
                with file_values.written_layout(network) as layout:
                    assign = file_values.through_layout(file, network, layout)
                    yield _Opened(file_leaves.read_weights_h5(file), assign, file_values.with_layout(ours, layout))
            elif file.text("model_config"):
                yield _open_whole(path, file, ours)
            else:
                yield _Opened(file_leaves.read_old_h5(file, ours), file_values.copy_tensors(file), ours)
    else:
        yield _open_checkpoint(path, ours)


def _open_whole(path: str, file: KerasH5, ours: Leaves) -> _Opened:
    """A whole model in an old file: built if possible, so that its graph is known; else read as weights."""
    try:
        return _Opened(describe_model(safe_loading.load_model(path, "weights")), file_values.copy_variables, ours)
    except ModelSpecError:
        note = "the file's own graph cannot be built here, so only the names of its layers were compared"
        return _Opened(file_leaves.read_old_h5(file, ours), file_values.copy_tensors(file), ours, (note,))


def _open_checkpoint(path: str, ours: Leaves) -> _Opened | None:
    """A checkpoint that Keras 2 wrote; None for another one."""
    from engine.porting.readers.checkpoint_file import Checkpoint
    from engine.porting.readers.locate import locate

    found = locate(path)
    if found is None or found.files:  # Keras 2 wrote the V2 format
        return None
    source = Checkpoint(found.prefix)
    if not any("layer_with_weights-" in name for name in source.names()):
        return None
    leaves = file_leaves.read_checkpoint(source, source.object_graph(), ours)
    return _Opened(leaves, file_values.copy_tensors(source), ours)
