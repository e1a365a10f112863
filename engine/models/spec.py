"""The contract of all models: the request that one is built from, and what training it requires."""

from __future__ import annotations

import numbers
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import InputError
from engine.text import nearest
from engine.training.loss_names import OutputsOf

if TYPE_CHECKING:  # names can be checked without TensorFlow
    from engine.data import Normalise
    from engine.data.part import ArraySpec
    from engine.selection.selection import Statistics

NAMES = ("vit:mini", "vit:Ti/16", "vit:S/16", "vit:B/16", "vit:L/16", "cnn:mini")
GRAPH_NAME = "graph:PATH"
BERT_NAME = "bert:DIR"
SAVED_NAMES = ("savedmodel:DIR", "hub:HANDLE")
SAVED = ("savedmodel", "hub")  # families whose networks are read from SavedModels
KERAS_NAMES = ("keras:NAME", "file:X.keras", "file:X.h5", "py:module:factory")


class ModelSpecError(InputError):
    """A model name or option that does not exist or does not fit the images."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request for a model, the same for every family.

    Attributes:
        spec, name: the model as given, for messages; and the part of it after the family, without the options.
        options: the text of each option of the spec except ``classes``.
        image_shape, outputs: (height, width, channels) of the data, or the shape of an example of another first input; and
            the number of outputs of the head.
        outputs_of: what has these outputs: each "example", as [B, outputs]; each "pixel", [B, height, width, outputs]; or each
            "place" of a map, for boxes. None where it is not known.
        inputs, tasks: the inputs of the data by name, if there are several or one that is not an image; and the number of outputs of each task, if there
            are several.
        head: a new head for a Keras model (engine.models.keras.heads), or None.
        logits: whether the loss expects logits; if so, a final softmax or sigmoid is removed. With several tasks, those whose
            losses do.
        seed: the seed of the initial weights.
        dtype, compute: the dtypes of the variables, and of the forward and backward pass.
        graph: the options of a graph of TensorFlow 1, by the names of the flags: tags, inputs, outputs, features, graph_inputs, constants; and loss, a tensor of it.
    """

    spec: str
    name: str
    options: Mapping[str, str]
    image_shape: tuple[int, ...]
    outputs: int
    head: str | None
    logits: bool | frozenset[str]
    seed: int
    dtype: Any
    compute: Any
    outputs_of: OutputsOf | None = "example"
    graph: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, ArraySpec] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)

    def expects_logits(self, task: str = "") -> bool:
        """Whether the loss of the only output, or of a task, expects logits."""
        return self.logits if isinstance(self.logits, bool) else task in self.logits

    @property
    def policy(self) -> str:
        """The Keras dtype policy for the two dtypes."""
        import tensorflow as tf

        name = tf.as_dtype(self.compute).name
        return name if self.compute == self.dtype else f"mixed_{name}"


@dataclass(eq=False)
class Model:
    """A network, and what training it requires.

    Attributes:
        network: ``network(images, training=, seeds=)`` -> logits [B, outputs]; ``normalise`` prepares its images, as
            the weights expect them once ``engine.load_weights`` has loaded some that say so.
        upper: the text of a filter for its upper part, which the default second phase trains together with the head.
        statistics: how the statistics of trained layers behave by default ("follow" or "frozen").
        images_chosen: whether the user or the network decides the preprocessing; if not, the weights may (Ledger.images).
        shipped_weights, shipped_for: the file that ``--weights=auto`` loads, and what it was trained for, for messages.
        notes: decisions made for the user, one sentence each.
        own_file: the file whose head the model keeps, with outputs for classes that the file may not name; else None.
        load: loads weights by their name in a flag and describes what it loaded; None for a file in another format than
            the model's own. Such files, and models without ``load``, are for engine.porting.
        own_loss: makes the loss function of a tensor of the network that has this name, for ``--loss=graph:NAME``.
        own_slots: opens the optimizer slots that a file of weights in the model's own format holds, as
            ``optimizer/<path>/<slot>``, given its name in a flag; None if it holds none.
        tasks: the number of outputs of each task, where the network returns tensors by the names of tasks.
        inputs: the names of the inputs that it is called with, where they are not one image.
        adapters: what is attached once its base has been loaded (``engine.models.adapters.attach.Adapters``), or None.
        draw_inputs: draws the inputs of two examples at random, for a network that does not take images.
        check_images: raises ModelSpecError if the weights that were loaded expect other images than ``normalise`` makes.
    """

    name: str
    network: Any
    outputs: int
    normalise: Normalise
    upper: str
    statistics: Statistics = "follow"
    images_chosen: bool = False
    shipped_weights: pathlib.Path | None = None
    shipped_for: str = ""
    notes: tuple[str, ...] = ()
    own_file: str | None = None
    load: Callable[[str], str | None] | None = None
    check_images: Callable[[], None] | None = None
    draw_inputs: Callable[[Any], Any] | None = None
    own_loss: Callable[[str], Any] | None = None
    own_slots: Callable[[str], Any] | None = None
    inputs: tuple[str, ...] = ()
    tasks: Mapping[str, int] = field(default_factory=dict)
    adapters: Any = None


def check_family(spec: str) -> None:
    """Raises ModelSpecError unless the name begins with a family of models, or with the size of a ViT."""
    name = spec.split(",")[0].strip()
    if name.partition(":")[0] == "vit":
        parse_vit_size(spec)
    elif name != "cnn:mini" and name.partition(":")[0] not in ("keras", "file", "py", "graph", "bert", *SAVED):
        known = [*NAMES, BERT_NAME, *KERAS_NAMES, *SAVED_NAMES, GRAPH_NAME]
        raise ModelSpecError(
            f"model={spec!r} is not a known model; expected one of {', '.join(known)}{nearest(name, known)}"
        )


def check_arguments(image_shape: Any, outputs: Any) -> None:
    """Raises ModelSpecError unless the shape is one of images or of another input, and there is at least one output."""
    shape = image_shape if isinstance(image_shape, (tuple, list)) else ()
    if not 1 <= len(shape) <= 3 or not all(_is_count(size) for size in shape):
        raise ModelSpecError(f"image_shape={image_shape!r}: expected (height, width, channels), whole numbers")
    if not _is_count(outputs):
        raise ModelSpecError(f"outputs={outputs!r}: expected a whole number of at least 1")


def read_image_shape(request: Request) -> tuple[int, int, int]:
    """The shape (height, width, channels) of the images of a request; ModelSpecError if the data have no images."""
    if request.inputs or len(request.image_shape) != 3:
        given = ", ".join(f"{name} {list(each.shape)}" for name, each in request.inputs.items())
        raise ModelSpecError(
            f"model={request.spec!r}: it takes images, but an example of these data is "
            f"{given or list(request.image_shape)}; py:module:factory builds a model of your own for them"
        )
    height, width, channels = request.image_shape
    return height, width, channels


def fits_outputs(shape: Any, request: Request) -> bool:
    """Whether outputs of a shape are those of a request (``Request.outputs_of``).

    A place is a whole number of pixels, the same in height and width.
    """
    sizes, of = tuple(shape)[1:], request.outputs_of
    if len(sizes) == 3 and len(request.image_shape) == 3 and of != "example":
        known = [(own, given) for own, given in zip(sizes[:2], request.image_shape[:2], strict=True) if own is not None]
        whole = all(0 < own <= given and given % own == 0 for own, given in known)
        scales = {given // own for own, given in known}
        return whole and sizes[2] == request.outputs and (scales <= {1} if of == "pixel" else len(scales) < 2)
    return of in ("example", None) and sizes == (request.outputs,)


def shape_outputs(request: Request) -> str:
    """The outputs that a request expects, for messages."""
    count = request.outputs
    shapes = {
        "example": f"[None, {count}]",
        "pixel": f"[None, height, width, {count}] of the images, for a class for each pixel,",
        "place": f"[None, h, w, {count}], for the places of a map,",
    }
    return shapes[request.outputs_of or "example"]


def name_heads(tasks: Iterable[str]) -> dict[str, str]:
    """The names of the heads of tasks, as in ``head/age/kernel``: what TensorFlow or a filter does not take becomes ``_``.

    Example:
        >>> name_heads(["age", "kind of bird", "kind/of/bird"])
        {'age': 'age', 'kind of bird': 'kind_of_bird', 'kind/of/bird': 'kind_of_bird_2'}
    """
    found: dict[str, str] = {}
    for task in tasks:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", task)
        plain = plain if plain[:1].isalnum() else f"task{plain}"
        name, number = plain, 1
        while name in found.values():
            number += 1
            name = f"{plain}_{number}"
        found[task] = name
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def parse_vit_size(spec: str) -> tuple[str, int]:
    """Reads the size and the patch in pixels (4 for mini) of ``vit:mini`` or ``vit:SIZE/PATCH``."""
    name = spec.split(",")[0].strip()
    match = re.fullmatch(r"vit:(mini|Ti|S|B|L)(?:/(\d{1,4}))?", name)
    if match is None or (match[1] != "mini" and match[2] is None):
        raise ModelSpecError(
            f"model={spec!r} is not a valid ViT; expected vit:mini, or vit:SIZE/PATCH with SIZE one of Ti, S, B, L"
            + nearest(name, NAMES)
        )
    return match[1], int(match[2] or 4)


def parse_options(spec: str, options: list[str]) -> dict[str, str]:
    """Reads options written as ``name`` or ``name=value``; each may be given once."""
    chosen: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in chosen:
            raise ModelSpecError(f"model={spec!r}: `{key}` is given twice; expected it once")
        chosen[key] = value
    return chosen


def parse_whole_number(spec: str, option: str, text: str, high: int) -> int:
    """Reads the value of an option, a whole number from 1 to ``high``."""
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is not a whole number from 1 to {high}")
    return int(text)


def parse_number(spec: str, option: str, text: str, low: float, high: float) -> float:
    """Reads the value of an option, a number from ``low`` to ``high``."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ModelSpecError(f"model={spec!r}: {option}={text!r} is not a number from {low:g} to {high:g}")
    return value
