"""Builds a model from its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import tensorflow as tf

from engine import part_times
from engine.data.part import ArraySpec
from engine.data.tokens import DEFAULT_TOKENS, TokenizerFiles
from engine.models import outside
from engine.models import spec as specs
from engine.models.bert_folder import build_bert, read_folder
from engine.models.builtin import build_cnn, build_vit
from engine.models.spec import KERAS_NAMES, NAMES, Model, ModelSpecError, Request
from engine.training.loss_names import OutputsOf
from engine.training.precision import PRECISIONS

ANY_SIZE = (224, 224)
_OF_TASKS = ("keras", "file", "py", "vit", "cnn", "savedmodel", "hub")  # families whose models can have several outputs


@part_times.part("model")
def build_model(
    spec: str,
    *,
    image_shape: tuple[int, ...],
    outputs: int,
    outputs_of: OutputsOf | None = "example",
    head: str | None = None,
    logits: bool | Collection[str] = True,
    seed: int = 0,
    dtype: Any = tf.float32,
    compute: Any = None,
    graph: Mapping[str, str] | None = None,
    inputs: Mapping[str, ArraySpec] | None = None,
    tasks: Mapping[str, int] | None = None,
) -> Model:
    """Builds a model from its name: one of the engine's own, one of keras.applications, a saved one or a user's own.

    Weights are random unless the model brings its own. See ``Model`` for everything that training it requires.

    Args:
        spec: the name, followed by options: ``vit:SIZE[/PATCH]`` with SIZE one of mini, Ti, S, B, L and the options
            ``pool=token|mean``, ``class_token`` (to add one with pool=mean), ``fc_norm``, ``norm_epsilon=R``,
            ``gelu=exact|tanh``, ``layer_scale[=1e-5]``, ``dropout=R``, ``drop_path=R``, ``depth=N`` and
            ``preprocess=tf|torch|unit``; ``cnn:mini``; ``bert:DIR``, an encoder of texts with the options
            ``pool=mean|cls|pooler``, ``gelu=exact|tanh``, ``head=own`` and ``dropout=R``; ``keras:NAME`` of keras.applications with the options of its
            function; ``file:X.keras`` or ``file:X.h5``; ``py:module:factory``; ``savedmodel:DIR`` and ``hub:HANDLE``
            with the options ``signature``, ``output`` and ``preprocess``; ``graph:PATH``, a graph of TensorFlow 1 (needs
            ``import compat_v1``). All of them accept ``classes=N``.
        image_shape: (height, width, channels) of the images; or the shape of an example of another input.
        outputs: the number of outputs, unless ``classes`` sets it.
        outputs_of: what has so many: each "example", each "pixel" (for masks), or each "place" of a map (for boxes); None: any.
        head: a new head for a Keras model (engine.models.keras.heads); None keeps its own, or means ``gap``.
        logits: whether the loss expects logits (mse does not); if so, a saved model's final softmax is removed. With
            several tasks, the names of those whose losses do.
        seed, dtype: of the initial weights; tf.float32 or tf.float64 (engine.training.precision).
        compute: the dtype of the forward and backward pass; None means ``dtype``.
        inputs: the inputs of an example by name, where there are several, or one that is not an image; only ``py:`` and saved Keras models take them.
        tasks: the number of outputs of each task by name, where there are several: ``keras:``, ``vit:`` and ``cnn:`` models get
            a head for each, ``head/TASK/...``; saved ones and ``py:`` models have outputs of these names, or get heads.
        graph: for ``graph:PATH``, its tags, inputs, outputs, features, graph_inputs and constants, as in the flags of these names.

    Raises:
        ModelSpecError: an unknown name or option, or images that the model cannot take.

    Example:
        >>> import numpy as np
        >>> model = build_model("vit:mini,depth=2", image_shape=(28, 28, 1), outputs=10)
        >>> model.network(np.zeros([4, 28, 28, 1], np.float32)).shape
        TensorShape([4, 10])
        >>> model.normalise.mean, model.normalise.std
        ((0.5,), (0.5,))
    """
    specs.check_family(spec)
    specs.check_arguments(image_shape, outputs)
    dtype, compute = _check_dtypes(dtype, compute or dtype)
    name, *options = [part.strip() for part in spec.split(",")]
    family, _, rest = name.partition(":")
    chosen = specs.parse_options(spec, options)
    if "classes" in chosen:
        outputs = specs.parse_whole_number(spec, "classes", chosen.pop("classes"), 1_000_000)
    request = Request(
        spec=spec,
        name=rest,
        options=chosen,
        image_shape=image_shape,
        outputs=outputs,
        outputs_of=outputs_of,
        head=head,
        logits=logits if isinstance(logits, bool) else frozenset(logits),
        seed=seed,
        dtype=dtype,
        compute=compute,
        graph=dict(graph or {}),
        inputs=dict(inputs or {}),
        tasks=dict(tasks or {}),
    )
    _check_fits(request, family, counted="classes" in specs.parse_options(spec, options))
    built = _build_family(request, family)
    built.inputs = tuple(request.inputs)
    return built


def _check_fits(request: Request, family: str, *, counted: bool) -> None:
    """Raises ModelSpecError if models of a family cannot have these inputs or tasks; ``counted``: the name says ``classes``."""
    spec = request.spec
    if family not in ("py", "file", "bert", *specs.SAVED):
        specs.read_image_shape(request)
    if request.tasks and family not in _OF_TASKS:
        raise ModelSpecError(
            f"model={spec!r}: it has one output, but the loss names several: {', '.join(request.tasks)}; models of "
            f"{', '.join(f'{each}:' for each in _OF_TASKS)} can have several"
        )
    if request.tasks and counted:
        raise ModelSpecError(f"model={spec!r}: the option classes is about one output, but the loss names several")


def _build_family(request: Request, family: str) -> Model:
    """The model of a request, by what builds those of its family."""
    if family in outside.FAMILIES:
        return outside.find_builder(family).build_model(request)
    if family in specs.SAVED:
        from engine.models.saved_model.build import build_saved_trunk

        return build_saved_trunk(request)
    if family in ("keras", "file", "py"):
        # imported here, since these modules import Keras, which other models do not need
        from engine.models.keras.applications import build_application
        from engine.models.keras.saved import build_saved_model
        from engine.models.user import build_saved_network, build_user_model

        pictures = not request.inputs and len(request.image_shape) == 3
        saved = build_saved_model if pictures else build_saved_network
        return {"keras": build_application, "file": saved, "py": build_user_model}[family](request)
    if request.head is not None:
        raise ModelSpecError(
            f"head={request.head!r}: {request.spec} has its own head; --head applies to {', '.join(KERAS_NAMES)}"
        )
    if family == "bert":
        return build_bert(request)
    return build_vit(request) if family == "vit" else build_cnn(request)


def _check_dtypes(dtype: Any, compute: Any) -> tuple[Any, Any]:
    """Both as tf.DType; ModelSpecError unless they are those of a precision."""
    try:
        found = tf.as_dtype(dtype), tf.as_dtype(compute)
    except TypeError:
        found = None
    known = [(each.variables, each.compute) for each in PRECISIONS.values()]
    if found not in known:
        raise ModelSpecError(
            f"dtype={dtype!r}, compute={compute!r}: expected {', '.join(f'{a.name} and {b.name}' for a, b in known)}"
        )
    return found


def build_network(spec: str, *, image_size: tuple[int, int] | None = None, channels: int = 3, seed: int = 0) -> Any:
    """Builds a bare network to load weights into: no head is added, nothing is removed, and it may have several outputs.

    A ``py:`` factory is called without arguments unless ``image_size`` or ``classes=N`` is given, and may return any object
    whose variables can be named. The ``image_size`` (height, width) is in pixels; None means the model's native size.
    """
    name, *options = (part.strip() for part in spec.split(","))
    family, _, rest = name.partition(":")
    chosen = specs.parse_options(spec, options)
    if family == "py":
        from engine.models import user

        count = chosen.pop("classes", None)
        outputs = None if count is None else specs.parse_whole_number(spec, "classes", count, 1_000_000)
        if chosen:
            raise ModelSpecError(f"model={spec!r}: `{next(iter(chosen))}` is not an option here; expected classes=N")
        given = image_size is not None or outputs is not None
        size = (image_size or user.native_size(spec, rest) or ANY_SIZE) if given else ANY_SIZE
        return user.call_factory(spec, rest, ((*size, channels), outputs or 1000) if given else (), seed=seed)[0]
    if family == "file":
        from engine.models.keras.safe_loading import load_model

        return load_model(rest, "model")
    if family in (*outside.FAMILIES, *specs.SAVED):
        raise ModelSpecError(
            f"model={spec!r}: a graph brings its own weights; expected {', '.join(NAMES)} or a Keras model"
        )
    shape = default_token_shape(spec) or (*(image_size or default_image_size(spec)), channels)
    return build_model(spec, image_shape=shape, outputs=1000, logits=False, seed=seed).network


def find_tokenizer(spec: str) -> TokenizerFiles | None:
    """What turns texts into the tokens of a model; None for a model without a tokenizer. Raises ModelSpecError."""
    name = spec.split(",")[0].strip()
    family, _, rest = name.partition(":")
    return read_folder(spec, rest).tokenizer if family == "bert" else None


def default_token_shape(spec: str) -> tuple[int] | None:
    """The shape (T,) of an example of a model that reads tokens, as it is read by default; None for other models."""
    found = find_tokenizer(spec)
    return None if found is None else (min(DEFAULT_TOKENS, found.positions or DEFAULT_TOKENS),)


def default_image_size(spec: str) -> tuple[int, int]:
    """The (height, width) in pixels to which image files are resized for a model by default.

    It is 28 for ``:mini`` models, the native size for an application, the size of the input for a saved model (whose file
    is read for it; ModelSpecError if it cannot be) and for a factory (which is called for it), and 224 for all others.
    """
    name = spec.split(",")[0].strip()
    family, _, rest = name.partition(":")
    if name.endswith(":mini"):
        return 28, 28
    if family == "keras":
        from engine.models.keras import applications

        return applications.native_size(rest)
    if family == "file":
        from engine.models.keras import saved

        return saved.read_input_size(rest) or ANY_SIZE
    if family == "py":
        from engine.models import user

        return user.native_size(spec, rest) or ANY_SIZE
    if family in specs.SAVED:
        from engine.models.saved_model import build

        return build.native_size(spec) or ANY_SIZE
    if family in outside.FAMILIES:
        return outside.find_builder(family).native_size(rest) or ANY_SIZE
    return ANY_SIZE
