"""Layers without weights of a file that lie outside of what is loaded: before its layers, after them, or nobody knows where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import keras_private
from engine.data import Normalise
from engine.models.keras.leaves import POOLS, Leaf, Leaves
from engine.text import join_some


@dataclass(frozen=True)
class Outside:
    """What was found: differences that change results, notes for the user, and the ids of the leaves that these are about."""

    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    judged: frozenset[int] = frozenset()


def judge_outside(
    leaves: Sequence[Leaf],
    theirs: Leaves,
    partners: set[int],
    common: tuple[str, ...],
    *,
    strict: bool,
    images: Normalise | None,
) -> Outside:
    """Judges layers without weights that only the file has.

    Those before the first partner prepare images: the model's own preparation ``images`` may do the same, which is found by
    trying. Others outside of the models ``common`` around all partners are told, or are differences if ``strict``.
    """
    first, last = _ends(theirs, partners)
    numbers = {id(leaf): number for number, leaf in enumerate(theirs)}
    outer = [leaf for leaf in leaves if leaf.path[: len(common)] != common]
    judged = set(map(id, outer))
    lines, notes = list[str](), list[str]()
    before = [leaf for leaf in leaves if theirs.ordered and numbers[id(leaf)] < first]
    if before and images is not None and (found := _compare_images(before, images)) is not None:
        same, text = found
        (notes if same else lines).append(text)
        judged |= set(map(id, before))
        outer = [leaf for leaf in outer if leaf not in before]
    if strict:
        lines += [f"{name_leaf(leaf)}: only in the file" for leaf in outer]
        return Outside(tuple(lines), tuple(notes), frozenset(judged))
    outer = [leaf for leaf in outer if not POOLS.fullmatch(leaf.kind)]
    for where, some in {
        "before": [leaf for leaf in outer if theirs.ordered and numbers[id(leaf)] < first],
        "behind": [leaf for leaf in outer if theirs.ordered and numbers[id(leaf)] > last],
        "outside of": [leaf for leaf in outer if not theirs.ordered or first < numbers[id(leaf)] < last],
    }.items():
        if some:
            names = join_some([name_leaf(leaf) for leaf in some], most=3)
            notes.append(f"left out of the file, since it lies {where} {'/'.join(common)}: {names}")
    return Outside(tuple(lines), tuple(notes), frozenset(judged))


def prepares_images_alike(theirs: Leaves, partners: set[int], images: Normalise | None) -> frozenset[int]:
    """The ids of the layers before the first partner if they do what the model's own preparation of images does."""
    first, _ = _ends(theirs, partners)
    before = [leaf for number, leaf in enumerate(theirs) if number < first and not leaf.arrays and not leaf.neutral]
    if images is None or not before or not theirs.ordered:
        return frozenset()
    found = _compare_images(before, images)
    return frozenset(map(id, before)) if found is not None and found[0] else frozenset()


def name_leaf(leaf: Leaf) -> str:
    """A layer's name, with its class where an automatic name does not say it."""
    return leaf.full_name if leaf.rank is not None or not leaf.kind else f"{leaf.full_name} ({leaf.kind})"


def _ends(theirs: Leaves, partners: set[int]) -> tuple[int, int]:
    places = [number for number, leaf in enumerate(theirs) if id(leaf) in partners]
    return min(places, default=0), max(places, default=-1)


def _compare_images(before: Sequence[Leaf], images: Normalise) -> tuple[bool, str] | None:
    """Whether layers turn pixels into what the model's preparation turns them into, and a sentence; None if unknown."""
    if not all(leaf.layer is not None and _is_plain(leaf) for leaf in before):
        return None
    channels = next((leaf.layer.output.shape[-1] for leaf in before), None)
    if channels not in (1, 3):
        return None
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, channels)).astype(np.uint8)
    pixels[0, 0, :2] = [[0], [255]]
    try:
        made: Any = pixels.astype(np.float32)
        for leaf in before:
            made = leaf.layer(made)
        made, ours = np.asarray(made, np.float64), np.asarray(images(pixels), np.float64)
    except Exception:  # layers of a file, on images that they may not have been made for
        return None
    names = join_some([name_leaf(leaf) for leaf in before], most=3)
    if made.shape != ours.shape:
        return None
    if np.abs(made - ours).max() <= 1e-4 * np.abs(ours).max():
        return True, f"{names} of the file prepare{'s' * (len(before) == 1)} images as they are prepared here"
    return False, (
        f"{names}: only in the file, where pixels from 0 to 255 become {made.min():.4g} to {made.max():.4g} before the first "
        f"weights; here they become {ours.min():.4g} to {ours.max():.4g}"
    )


def _is_plain(leaf: Leaf) -> bool:
    """Whether a layer reads a single tensor in each call (a Sequential model calls it again): in order, they are a chain."""
    nodes = keras_private.inbound_nodes(leaf.layer)
    return bool(nodes) and all(len(node.parent_nodes) == 1 for node in nodes) and not leaf.is_operation
