"""The shapes and dtypes of an old checkpoint, taken from the old graph where the checkpoint itself is missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from compat_v1.graphs import saver_keys
from compat_v1.graphs.endpoints import shape_of
from engine.files import PathLike
from engine.porting.reverse import KnownShapes
from engine.porting.rules.transforms import Spec


def known_from_graph(meta: Any, path: PathLike) -> KnownShapes:
    """Takes what the Saver of a MetaGraphDef restores, as far as its variables state shapes."""
    nodes = {node.name: node for node in meta.graph_def.node}
    specs = {}
    for each in saver_keys.list_wanted(meta):
        node = nodes.get(each.variable)
        shape = each.part.full if each.part is not None else shape_of(node) if node is not None else None
        if shape is not None and None not in shape and each.dtype is not None:
            dtype = np.dtype(each.dtype.base_dtype.as_numpy_dtype)
            specs[each.key] = Spec(tuple(int(length or 0) for length in shape), dtype)
    return KnownShapes(specs, path)
