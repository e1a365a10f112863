"""Operations in a graph of layers that are not layers, such as ``image / 255``, and groups of them that are one activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine import keras_private
from engine.text import join_some

# scale and offset of an operation of a tensor and a number n
_LEFT: dict[str, Callable[[float], tuple[float | None, float]]] = {
    "add": lambda n: (1.0, n),
    "subtract": lambda n: (1.0, -n),
    "multiply": lambda n: (n, 0.0),
    "true_divide": lambda n: (1.0 / n if n else None, 0.0),
    "divide": lambda n: (1.0 / n if n else None, 0.0),
}
# of a number n and a tensor
_RIGHT: dict[str, Callable[[float], tuple[float | None, float]]] = {
    "add": _LEFT["add"],
    "multiply": _LEFT["multiply"],
    "subtract": lambda n: (-1.0, n),
}


def list_operations(container: Any) -> Sequence[Any]:
    """The layers of a model, and the operations between them where it is built from tensors, in the order of the graph."""
    import keras

    operations = getattr(container, "operations", ())
    return container.layers if isinstance(container, keras.Sequential) or not operations else operations


def describe_operation(operation: Any) -> tuple[str, Mapping[str, Any]]:
    """The class of an operation, in snake case, and its arguments; arithmetic with a number is a ``rescaling``."""
    kind = keras_private.snake_case(type(operation).__name__)
    given = _arguments(operation)
    for table, at in ((_LEFT, 1), (_RIGHT, 0)):
        number = given[at] if len(given) == 2 else None
        if kind in table and isinstance(number, (int, float)) and not isinstance(number, bool):
            scale, offset = table[kind](float(number))
            if scale is not None:
                return "rescaling", {"scale": scale, "offset": offset}
    import keras

    constants = [value for value in given if not isinstance(value, keras.KerasTensor)]
    own = {name: value for name, value in vars(operation).items() if not name.startswith("_") and name != "name"}
    return kind, {**own, **({"arguments": constants} if constants else {})}


def _arguments(operation: Any) -> list[Any]:
    nodes = keras_private.inbound_nodes(operation)
    if not nodes:
        return []
    arguments = nodes[0].arguments
    return [*arguments.args, *arguments.kwargs.values()]


def find_hard_silu(operation: Any) -> tuple[Any, ...]:
    """The operations before a product that make it ``x * relu6(x + 3) / 6``, as Keras 2 writes hard_silu; else ()."""
    parents = _parents(operation)
    if _kind(operation)[0] != "multiply" or len(parents) != 2:
        return ()
    for one, other in (parents, parents[::-1]):
        chain, at = list[Any](), one
        for wanted in ({"scale": 1 / 6, "offset": 0.0}, {"max_value": 6.0}, {"scale": 1.0, "offset": 3.0}):
            kind, config = _kind(at)
            if kind != ("re_lu" if "max_value" in wanted else "rescaling") or len(_parents(at)) != 1:
                break
            if any(config.get(key) is None or abs(config[key] - value) > 1e-6 for key, value in wanted.items()):
                break
            if config.get("threshold") or config.get("negative_slope"):
                break
            chain.append(at)
            at = _parents(at)[0]
        if len(chain) == 3 and at is other:
            return tuple(chain)
    return ()


def kind_of(operation: Any) -> str:
    """The class of a layer or operation in snake case; a product that is a hard_silu counts as an activation."""
    return "activation" if find_hard_silu(operation) else _kind(operation)[0]


def _kind(operation: Any) -> tuple[str, Mapping[str, Any]]:
    import keras

    if isinstance(operation, keras.Layer):
        kind = keras_private.snake_case(type(operation).__name__)
        return kind, operation.get_config() if kind in ("re_lu", "rescaling") else {}
    return describe_operation(operation)


def _parents(operation: Any) -> list[Any]:
    nodes = keras_private.inbound_nodes(operation)
    return [node.operation for node in nodes[0].parent_nodes] if len(nodes) == 1 else []


def describe_uncompared(kinds: Sequence[str]) -> str:
    """What is said of a model's operations that a file without a graph does not list."""
    names = join_some(sorted(set(kinds)), most=3)
    return f"{len(kinds)} operations between the model's layers ({names}) were not compared, since the file lists only layers"
