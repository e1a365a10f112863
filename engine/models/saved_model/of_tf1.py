"""A SavedModel or a Hub module of TensorFlow 1, which is built as ``graph:`` is."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.models import outside
from engine.models.saved_model.reading import SavedFile
from engine.models.spec import Model, ModelSpecError, Request
from engine.text import join_some, nearest

_USUAL = ("serving_default", "default", "image_feature_vector")


def build_old_model(request: Request, file: SavedFile) -> Model:
    """Builds a SavedModel of TensorFlow 1 by the family ``graph``.

    The options ``signature`` and ``output`` name an output of one of its signatures; with a head it is what the head stands
    on. The flags of ``graph:`` (--inputs, --features, ...) go on to it. Raises ModelSpecError if there is no such signature
    or output, or compat_v1 was not imported.
    """
    graph = dict(request.graph)
    options = dict(request.options)
    if "tags" in options:
        graph["tags"] = options.pop("tags").replace("+", ",")
    name, output = options.pop("signature", None), options.pop("output", None)
    if "features" not in graph and "outputs" not in graph:
        signature = _choose_signature(request, file, name)
        if signature is not None:
            graph["features" if request.head is not None else "outputs"] = _choose_tensor(request, signature, output)
            data = [each.name for each in signature.inputs.values() if each.dtype not in (10, 0)]  # not booleans
            if "inputs" not in graph and len(data) == 1:
                graph["inputs"] = data[0]
    spec = f"graph:{file.folder}"
    made = dataclasses.replace(request, name=str(file.folder), options=options, graph=graph)
    model = outside.find_builder("graph").build_model(made)
    return dataclasses.replace(
        model, notes=(f"{file.folder.name} is a SavedModel of TensorFlow 1: built as {spec}", *model.notes)
    )


def _choose_signature(request: Request, file: SavedFile, name: str | None) -> Any:
    """The signature of this name, or the usual one; None if there is none to choose."""
    known = {
        key: each for key, each in file.definition.signature_def.items() if each.outputs and not key.startswith("__")
    }
    if name is not None:
        if name not in known:
            raise ModelSpecError(
                f"model={request.spec!r}: signature={name}: {file.folder} has no such signature; it has "
                f"{join_some(list(known), most=12) or 'none'}{nearest(name, list(known))}"
            )
        return known[name]
    usual = [known[each] for each in _USUAL if each in known]
    return usual[0] if usual else next(iter(known.values())) if len(known) == 1 else None


def _choose_tensor(request: Request, signature: Any, output: str | None) -> str:
    """The tensor of an output of a signature: the one of this name, the only one, or the one called "default"."""
    outputs = {key: each.name for key, each in signature.outputs.items()}
    chosen = output if output is not None else "default" if "default" in outputs else None
    if chosen is None and len(outputs) == 1:
        chosen = next(iter(outputs))
    if chosen not in outputs:
        what = f"output={output}: there is no such output" if output is not None else "output=NAME must choose one"
        raise ModelSpecError(
            f"model={request.spec!r}: {what} of {join_some(list(outputs), most=12)}{nearest(output or '', list(outputs))}"
        )
    return str(outputs[chosen])
