"""Networks that return tensors by name, one for each task: matched with the tasks by name, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models.keras import heads
from engine.models.spec import ModelSpecError, Request, read_image_shape
from engine.text import join_words, nearest

_PROBABILITIES = ("Softmax", "Sigmoid")


def name_outputs(model: Any) -> Any:
    """A Keras graph of layers with its outputs by name: those of a list are called as the layers that compute them.

    The model itself if it returns a dict, one tensor, or several of which two have the same name.
    """
    import keras

    outputs, names = getattr(model, "outputs", None) or (), list(getattr(model, "output_names", None) or ())
    if len(outputs) < 2 or isinstance(getattr(model, "output", None), Mapping) or len(set(names)) < len(outputs):
        return model
    return keras.Model(model.input, dict(zip(names, outputs, strict=True)), name=model.name)


def check_outputs(request: Request, traced: Any) -> None:
    """Raises ModelSpecError unless a traced network returns [B, outputs] for each task, and nothing else."""
    about, structure = f"model={request.spec!r}", traced.structured_outputs
    wanted = join_words(f"{task} [None, {count}]" for task, count in request.tasks.items())
    if not isinstance(structure, Mapping):
        what = f"{len(traced.outputs)} tensors without names" if len(traced.outputs) > 1 else "one tensor"
        raise ModelSpecError(
            f"{about}: it returns {what}; expected a dict with {wanted}, the tasks that the loss names"
            + ("; --head=gap puts a head for each task on its features" if len(traced.outputs) == 1 else "")
        )
    shapes = {str(name): list(each.shape) for name, each in structure.items()}
    if missing := [task for task in request.tasks if task not in shapes]:
        raise ModelSpecError(
            f"{about}: it has no output {missing[0]!r}; its outputs are {join_words(shapes)}, and the loss names "
            f"{join_words(request.tasks)}{nearest(missing[0], list(shapes))}"
        )
    if unused := [name for name in shapes if name not in request.tasks]:
        example = ", ".join(f"{name}=softmax" for name in unused)
        raise ModelSpecError(
            f"{about}: no loss names its output {join_words(unused)}; add it to --loss, as in '{example}', or build the model "
            "without it"
        )
    for task, count in request.tasks.items():
        if shapes[task][1:] != [count]:
            shape = [None, *shapes[task][1:]]
            raise ModelSpecError(
                f"{about}: its output {task!r} has shape {shape}; expected [None, {count}] for these data"
            )
    for number, task in enumerate(sorted(shapes)):  # in the order in which a dict is flattened
        kind = heads.output_operation(traced, number)
        if request.expects_logits(task) and kind in _PROBABILITIES:
            raise ModelSpecError(
                f"{about}: its output {task!r} ends in {kind.lower()}, but its loss expects logits; leave the {kind.lower()} out"
            )


def remove_activations(request: Request, model: Any) -> tuple[Any, tuple[str, ...]]:
    """A Keras graph of layers, with one input and outputs by name, with logits where losses expect them; and what was done."""
    import keras

    outputs = model.output
    if not isinstance(outputs, Mapping):
        return model, ()
    found, notes = dict(outputs), []
    traced = heads.trace(model, read_image_shape(request)[:2])
    for number, name in enumerate(sorted(outputs)):
        kind = heads.output_operation(traced, number)
        if not request.expects_logits(name) or kind not in _PROBABILITIES:
            continue
        alone = keras.Model(model.inputs[0], outputs[name])
        changed, _ = heads.remove_activation(alone, request.spec, kind)
        found[name] = changed.outputs[0]
        notes.append(f"the final {kind.lower()} of {name} was removed, since its loss expects logits")
    if not notes:
        return model, ()
    return keras.Model(model.inputs[0], found, name=model.name), tuple(notes)
