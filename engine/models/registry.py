"""Builds a model from its name in a flag."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from engine.models.builtin import NAMES, build_cnn, build_vit
from engine.models.spec import Model, ModelSpecError, Request, parse_options, whole_number
from engine.text import nearest

KERAS_NAMES = ("keras:NAME", "file:X.keras", "file:X.h5", "py:module:factory")
ANY_SIZE = (224, 224)


def build_model(
    spec: str,
    *,
    image_shape: tuple[int, int, int],
    outputs: int,
    head: str | None = None,
    logits: bool = True,
    seed: int = 0,
    dtype: Any = tf.float32,
    compute: Any = None,
) -> Model:
    """Builds a model with random weights (the head's are small), or a saved one.

    Args:
        spec: ``vit:SIZE[/PATCH][,option...]`` with SIZE in mini, Ti, S, B, L and options
            ``pool=token|mean``, ``class_token`` (with pool=mean too), ``fc_norm``, ``norm_epsilon=R``,
            ``gelu=exact|tanh``, ``layer_scale[=1e-5]``, ``dropout=R``, ``drop_path=R``, ``depth=N``, ``preprocess=tf|torch|unit``;
            ``cnn:mini``; ``keras:NAME`` of keras.applications with its options; ``file:X.keras``,
            ``file:X.h5``; ``py:module:factory``. All take ``classes=N``.
        image_shape: (height, width, channels).
        outputs: outputs of the head when ``classes`` does not say.
        head: a new head for a Keras model (engine.models.keras.heads); None is its own, or ``gap``.
        logits: whether the loss wants logits (mse does not): a saved model's last softmax is then taken off.
        seed: of the initial weights.
        dtype: of the variables, tf.float32 or tf.float64 (engine.training.precision).
        compute: dtype of the forward and backward pass; None is ``dtype``.

    Raises:
        ModelSpecError: unknown name or option, or images that the model cannot take.
    """
    name, *options = [part.strip() for part in spec.split(",")]
    family, _, rest = name.partition(":")
    chosen = parse_options(spec, options)
    if "classes" in chosen:
        outputs = whole_number(spec, "classes", chosen.pop("classes"), 1_000_000)
    request = Request(
        spec=spec,
        name=rest,
        options=chosen,
        image_shape=image_shape,
        outputs=outputs,
        head=head,
        logits=logits,
        seed=seed,
        dtype=dtype,
        compute=compute or dtype,
    )
    if family in ("keras", "file", "py"):
        return _keras(family, request)
    if head is not None:
        raise ModelSpecError(f"head={head!r}: {spec} has a head of its own; --head is for {', '.join(KERAS_NAMES)}")
    if family == "vit":
        return build_vit(request)
    if name == "cnn:mini":
        return build_cnn(request)
    known = [*NAMES, *KERAS_NAMES]
    raise ModelSpecError(f"model={spec!r}: known models are {', '.join(known)}{nearest(name, known)}")


def build_network(spec: str, *, image_size: tuple[int, int] | None = None, channels: int = 3, seed: int = 0) -> Any:
    """A bare network to put weights into: no head is made, nothing is taken off, outputs may be several.

    Args:
        spec: as ``build``. A ``py:`` factory is called without arguments, unless ``image_size`` or ``classes=N`` is
            given; it may return anything whose variables can be named.
        image_size: (height, width) in pixels; None is what the model is made for.
        channels: of the images.
        seed: of the initial weights.

    Raises:
        ModelSpecError: as ``build``.
    """
    name, *options = (part.strip() for part in spec.split(","))
    family, _, rest = name.partition(":")
    chosen = parse_options(spec, options)
    if family == "py":
        from engine.models import user

        outputs = whole_number(spec, "classes", chosen.pop("classes"), 1_000_000) if "classes" in chosen else None
        if chosen:
            raise ModelSpecError(f"model={spec!r}: `{next(iter(chosen))}` is no option here; classes=N is")
        given = image_size is not None or outputs is not None
        arguments = ((*(image_size or ANY_SIZE), channels), outputs or 1000) if given else ()
        return user.make(spec, rest, arguments, seed=seed)[0]
    if family == "file":
        from engine.models.keras.safe_loading import load_model

        return load_model(rest, "model")
    size = image_size or default_image_size(spec)
    return build_model(spec, image_shape=(*size, channels), outputs=1000, logits=False, seed=seed).network


def _keras(family: str, request: Request) -> Model:
    # here, not above: these rooms import Keras, which other models do not need, and this one
    from engine.models import user
    from engine.models.keras import applications, saved

    return {"keras": applications, "file": saved, "py": user}[family].build(request)


def default_image_size(spec: str) -> tuple[int, int]:
    """(height, width) in pixels that image files are resized to for this model, when nothing else is said.

    ``:mini`` models have 28, an application its native size, a saved model that of its input (the file
    is read for it), and all others 224.

    Raises:
        ModelSpecError: a saved model that cannot be read.
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

        return saved.input_size(rest) or ANY_SIZE
    return ANY_SIZE
