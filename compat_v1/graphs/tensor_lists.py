"""Converts the TensorArrays of TensorFlow 1, which are state behind a handle, to lists of tensors, which are values.

A TensorArray is a handle, and a number (its flow) that every operation passes on to put them in order. As a list, the
array takes the way of its flow; handles are no longer needed. All versions are converted: the third (TensorFlow 1.0
and later), and the two before, in which a flow begins as a constant.

In both, an element that was never written is read as zeros if the array states the shape of its elements, and else is
an error. An array that is read, or written, twice at one place was an error; a list allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from compat_v1.graphs.array_flows import PASSES, WRITES, check_flows, kind_of
from compat_v1.graphs.counting import are_equal, constant_of, is_number, range_end
from compat_v1.graphs.draft import Draft, control_inputs, data_inputs, make_node
from compat_v1.graphs.endpoints import dtype_of, producer
from engine.graphs.reach import reach

OWN_GRADIENTS = "it belongs to gradients that the graph computes itself; name outputs that do not need them"


def convert_tensor_arrays(draft: Draft) -> None:
    """Replaces the TensorArrays by lists. Raises GraphError if a flow or a handle is used for anything else."""
    arrays = [name for name, node in draft.nodes.items() if kind_of(node.op) is not None]
    if arrays:
        _Arrays(draft, arrays).convert()
        draft.prune()


class _Arrays:
    """The TensorArrays of a graph."""

    def __init__(self, draft: Draft, arrays: list[str]) -> None:
        self._draft, self._arrays = draft, dict.fromkeys(arrays)
        self._readers = draft.readers()
        self._creators: dict[str, list[Any]] = {}  # operation on an array -> the nodes that may have created it

    def convert(self) -> None:
        draft = self._draft
        for name in self._arrays:
            node = draft.nodes[name]
            if kind_of(node.op) in ("Grad", "GradWithShape"):
                raise draft.refusal(node, OWN_GRADIENTS)
            if kind_of(node.op):
                self._creators[name] = self._find_creators(node)
        begun = self._begin_old_flows()
        flows = self._find_flows(begun)
        self._check_readers(flows)
        first = {f"{name}:1": name for name in self._arrays if draft.nodes[name].op == "TensorArrayV3"}
        first |= {f"{name}:0": producer(draft.nodes[name].input[0]) for name in begun}
        check_flows(draft, first, self._creators, flows)
        lists = {**flows, **self._find_handles(begun)}
        for name, node in draft.nodes.items():
            if name not in self._arrays and node.op in PASSES and f"{name}:0" in lists:
                node.attr["T"].type = tf.variant.as_datatype_enum
        for name in self._arrays:
            self._replace(draft.nodes[name])
        moved = {f"{name}:1": f"{name}:0" for name in self._arrays}  # a flow was the second result, a list is the first
        for node in draft.nodes.values():
            node.input[:] = [moved[text] if text in moved and text in flows else text for text in node.input]

    def _before(self, name: str) -> list[str]:
        """Returns the nodes from which a node passes something on."""
        node = self._draft.nodes.get(name)
        if node is None or node.op not in PASSES:
            return []
        return [producer(text) for text in (data_inputs(node) if node.op == "Merge" else node.input[:1])]

    def _find_creators(self, node: Any) -> list[Any]:
        nodes, data = self._draft.nodes, data_inputs(node)
        found = reach([producer(data[0])], self._before) if data else {}
        ends = [name for name in found if name not in nodes or nodes[name].op not in PASSES]
        if not ends or any(name not in nodes or kind_of(nodes[name].op) != "" for name in ends):
            raise self._draft.refusal(node, "its array is not created in the graph; name outputs that do not need it")
        return [nodes[name] for name in ends]

    def _begin_old_flows(self) -> list[str]:
        """Lets the flows that begin as constants (before TensorFlow 1.0) begin as the lists of their arrays.

        Returns these nodes.
        """
        nodes = self._draft.nodes
        begun: dict[str, set[str]] = {}

        def before(name: str) -> list[str]:
            writes = name in nodes and kind_of(nodes[name].op) in WRITES
            return [producer(data_inputs(nodes[name])[-1])] if writes else self._before(name)

        for name, creators in self._creators.items():
            if kind_of(nodes[name].op) == "Close":
                continue
            for source in reach([producer(data_inputs(nodes[name])[-1])], before):
                if source in nodes and nodes[source].op == "Const":
                    begun.setdefault(source, set()).update(each.name for each in creators)
        for name, arrays in begun.items():
            created = [nodes[each] for each in arrays]
            if len(created) > 1 or created[0].op == "TensorArrayV3":
                raise self._draft.refusal(
                    nodes[name], "it is in place of the flow of a TensorArray; the graph is damaged"
                )
            inputs = [f"{created[0].name}:0", *control_inputs(nodes[name])]
            nodes[name] = make_node(name, "Identity", inputs, T=tf.variant)
        return list(begun)

    def _find_handles(self, begun: list[str]) -> dict[str, None]:
        """Returns the tensors that pass on a handle. Raises GraphError if anything else reads one."""
        nodes = self._draft.nodes

        def after(tensor: str) -> list[str]:
            found = []
            for node in self._readers.get(producer(tensor), ()):
                if tensor not in node.input or node.name in begun:
                    continue
                if node.op in PASSES:
                    found += [f"{node.name}:{index}" for index in range(2 if node.op == "Switch" else 1)]
                elif not kind_of(node.op):
                    raise self._draft.refusal(node, "it reads the handle of a TensorArray; name outputs without it")
            return found

        handles = reach([f"{name}:0" for name in self._arrays if kind_of(nodes[name].op) == ""], after)
        for tensor in handles:
            if tensor in self._draft.keep:
                raise self._draft.refusal(
                    nodes[producer(tensor)], "it is a TensorArray; name a tensor that is read from it"
                )
        return handles

    def _find_flows(self, begun: list[str]) -> dict[str, None]:
        """Returns the tensors that are flows."""
        nodes = self._draft.nodes

        def after(tensor: str) -> list[str]:
            found = []
            for node in self._readers.get(producer(tensor), ()):
                if tensor in node.input and node.op in PASSES and (node.op == "Merge" or node.input[0] == tensor):
                    found += [f"{node.name}:{index}" for index in range(2 if node.op == "Switch" else 1)]
            return found

        third = [f"{name}:1" for name in self._arrays if nodes[name].op == "TensorArrayV3"]
        written = [f"{name}:0" for name in self._arrays if kind_of(nodes[name].op) in WRITES]
        return reach([*third, *written, *(f"{name}:0" for name in begun)], after)

    def _check_readers(self, flows: dict[str, None]) -> None:
        """Raises GraphError if a flow is read as a number, or a list would meet one."""
        draft = self._draft
        for tensor in flows:
            if tensor in draft.keep:
                raise draft.refusal(
                    draft.nodes[producer(tensor)],
                    "it is the flow of a TensorArray and has no value of its own; name another tensor",
                )
        for node in draft.nodes.values():
            data = data_inputs(node)
            places = [place for place, text in enumerate(data) if text in flows]
            kind = kind_of(node.op)
            if kind:
                expected = [] if kind == "Close" else [len(data) - 1]
            elif node.op == "Merge":
                expected = list(range(len(data))) if places else []
            else:
                expected = [0] if node.op in PASSES and places else []
            if places != expected:
                raise draft.refusal(
                    node, "it reads the flow of a TensorArray as a number, or lacks one; name outputs without it"
                )

    def _replace(self, node: Any) -> None:
        """Replaces one operation on an array by that on a list."""
        draft, kind = self._draft, kind_of(node.op)
        data, waits = data_inputs(node), control_inputs(node)
        if kind == "Close":
            draft.nodes[node.name] = make_node(node.name, "NoOp", waits)
            return
        if kind == "Size":
            draft.nodes[node.name] = make_node(node.name, "TensorListLength", [data[-1], *waits])
            return
        dtype = dtype_of(node.attr["T" if kind in WRITES else "dtype"].type)
        creators = [node] if kind == "" else self._creators[node.name]
        stated = [each.attr["element_shape"].shape for each in creators if "element_shape" in each.attr]
        shape = stated[0] if len(stated) == len(creators) and all(each == stated[0] for each in stated) else None
        if (
            kind in ("Gather", "Pack")
            and "element_shape" in node.attr
            and not node.attr["element_shape"].shape.unknown_rank
        ):
            shape = node.attr["element_shape"].shape
        dynamic = any(each.attr["dynamic_size"].b for each in creators)
        flow = data[-1]
        made: tuple[str, list[str], dict[str, Any]]
        if kind == "":
            made = ("TensorListReserve", [self._shape(node, shape), data[0]], {"shape_type": tf.int32})
        elif kind == "Write":
            made = ("TensorListSetItem", [flow, data[1], data[2]], {"resize_if_index_out_of_bounds": dynamic})
        elif kind == "Read":
            made = ("TensorListGetItem", [flow, data[1], self._shape(node, shape)], {})
        elif kind == "Gather" and self._reads_all(node):
            made = ("TensorListStack", [flow, self._shape(node, shape)], {"num_elements": self._count(node)})
        elif kind == "Gather":
            made = ("TensorListGather", [flow, data[1], self._shape(node, shape)], {})
        elif kind == "Scatter" and self._writes_all(node):
            made = ("TensorListFromTensor", [data[2], self._shape(node, shape)], {"shape_type": tf.int32})
        elif kind == "Scatter":
            made = ("TensorListScatterIntoExistingList", [flow, data[2], data[1]], {})
        elif kind == "Unpack":
            made = ("TensorListFromTensor", [data[1], self._shape(node, shape)], {"shape_type": tf.int32})
        elif kind == "Pack":
            made = ("TensorListStack", [flow, self._shape(node, shape)], {"num_elements": -1})
        elif kind == "Split":
            self._check_split(node, creators)
            made = ("TensorListSplit", [data[1], self._shape(node, shape), data[2]], {"shape_type": tf.int32})
        else:
            rest = node.attr["element_shape_except0"].shape if "element_shape_except0" in node.attr else None
            leading = draft.add_constant(f"{node.name}/leading_dims", [], tf.int64)
            inputs = [flow, self._shape(node, rest, first=[-1]), leading]
            made = ("TensorListConcatV2", inputs, {"shape_type": tf.int32})
        op, inputs, attributes = made
        draft.nodes[node.name] = make_node(node.name, op, [*inputs, *waits], element_dtype=dtype, **attributes)

    def _reads_all(self, node: Any) -> bool:
        """Whether a Gather takes all elements in order, as ``stack`` does."""
        draft, (_, indices, flow) = self._draft, data_inputs(node)
        end = range_end(draft, indices)
        if isinstance(end, str):
            size = draft.nodes.get(producer(draft.follow_identities(draft.nodes, end)))
            if size is not None and (size.op == "TensorListLength" or kind_of(size.op) == "Size"):
                return are_equal(draft, data_inputs(size)[-1], flow)
        (creator, *others) = self._creators[node.name]
        fixed = not others and not creator.attr["dynamic_size"].b
        return end is not None and fixed and are_equal(draft, end, self._size(creator))

    def _writes_all(self, node: Any) -> bool:
        """Whether a Scatter fills a new array with all its elements in order, as ``unstack`` does."""
        draft, (_, indices, _, flow) = self._draft, data_inputs(node)
        end, (creator, *others) = range_end(draft, indices), self._creators[node.name]
        new = not others and producer(draft.follow_identities(draft.nodes, flow)) == creator.name
        if end is None or not new:
            return False
        size = self._size(creator)
        return are_equal(draft, end, size) or (creator.attr["dynamic_size"].b and is_number(draft, size, 0))

    def _count(self, node: Any) -> int:
        """Returns how many elements the array of an operation has, -1 if that is not known."""
        counts = {
            -1
            if creator.attr["dynamic_size"].b or (count := constant_of(self._draft, self._size(creator))) is None
            else int(count)
            for creator in self._creators[node.name]
        }
        return counts.pop() if len(counts) == 1 else -1

    def _size(self, creator: Any) -> str:
        """Returns the tensor with the size that an array is created with."""
        return data_inputs(creator)[0]

    def _check_split(self, node: Any, creators: list[Any]) -> None:
        """Raises GraphError if an array may have more elements than those that it is split into."""
        for creator in creators:
            empty = is_number(self._draft, self._size(creator), 0)
            if creator.attr["dynamic_size"].b and not empty:
                raise self._draft.refusal(
                    node,
                    "it fills a TensorArray that grows and may have more elements already; name outputs without it",
                )

    def _shape(self, node: Any, shape: Any, *, first: Sequence[int] = ()) -> str:
        """Returns a constant with a shape as lists take it: -1 for an unknown length, only -1 for an unknown rank."""
        dims: Any = -1
        if shape is not None and not shape.unknown_rank:
            dims = [*first, *(dim.size for dim in shape.dim)]
            if not all(-1 <= size < 1 << 31 for size in dims):
                raise self._draft.refusal(node, f"its elements have the shape {dims}; the graph is damaged")
        return self._draft.add_constant(f"{node.name}/element_shape", dims, tf.int32)
