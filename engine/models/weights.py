"""What ``--weights`` means: ``auto``, ``none``, ``imagenet`` or a file, for every family of models."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from engine import porting
from engine.data import Normalise
from engine.data.class_names import read_class_names, same_names
from engine.errors import InputError
from engine.files import Npz, PathLike
from engine.models.adapters.attach import attach_requested, holds_requested
from engine.models.delta_weights import list_head, put_deltas
from engine.models.head_classes import HeadClasses, compare_classes, compare_own_classes
from engine.models.images import scale_images
from engine.models.spec import Model
from engine.porting.deltas.chain import WORDS, parse_chain
from engine.selection.variables import is_keras, name_variables
from engine.text import join_words


@dataclass(frozen=True)
class LoadedWeights:
    """What ``load_weights`` did.

    Attributes:
        text: a line for people, such as ``random`` or the file's name and how many variables it filled.
        ledger: which tensor of the file became which variable; None where no file was ported.
        images: the preprocessing that the file's weights expect, a name in ``engine.models.IMAGES``; None where they
            do not say, or where the user chose one.
        classes: the classes of the head in the file and in the data; None where they were not compared.
        base, deltas: what was loaded, and the deltas that were put onto it.
        head_from: the file that the head was read from by rules; None if no such file has it.
    """

    text: str
    ledger: porting.Ledger | None = None
    images: str | None = None
    classes: HeadClasses | None = None
    base: str = ""
    deltas: tuple[str, ...] = ()
    head_from: str | None = None


def load_weights(
    model: Model,
    weights: PathLike = "auto",
    *,
    rules: PathLike | None = None,
    image_shape: tuple[int, ...] | None = None,
    classes: Sequence[str] | None = None,
    force_base: bool = False,
) -> LoadedWeights:
    """Loads weights into a model, from every file that ``finetune`` takes.

    Args:
        model: a ``Model`` that ``build_model`` made, or a network: a Keras model or a tf.Module, for which ``weights`` must
            be a file. Its variables are assigned in place, and so is ``normalise`` where the weights say which images they
            expect and the model's name does not.
        weights: ``"auto"`` (the weights that ship with the model, or ImageNet's where they are already on this machine;
            random ones where there are none), ``"none"`` (random), ``"imagenet"`` (``keras:`` models; Keras downloads
            them), or a file: an .npz, safetensors, Keras or HDF5 file, or a TensorFlow checkpoint. ``BASE+DELTA`` puts
            what a run trained (``trained.npz``) onto any of them, ``BASE+DELTA+DELTA`` what a second run trained on top.
        rules: which tensor becomes which variable: a rule file, or the name of a shipped one. By default it is chosen
            by the names in the file.
        image_shape: (height, width, channels) of the images, for the message when shipped weights do not fit them, and to
            match classes where the model does not say its own.
        classes: the names of the classes that the outputs stand for, in order. A head is matched with the names in a file:
            reordered, or anew for other classes; ``text`` says so, or that the file names none. Without ``classes``, a
            head is taken as it is, and ``text`` names the classes that the file has.
        force_base: put a delta also onto weights that it does not belong to.

    Adapters that the model is to have (``engine.models.adapters``) are attached to the base, before deltas that hold them.

    Raises:
        PortError: the file cannot be read or does not fit the model, or its classes cannot be matched; or a delta belongs
            to another base, whose variables the model then has.
        ModelSpecError: with these weights the model expects other images than ``model.normalise`` makes.

    Example:
        >>> from engine import build_model, load_weights
        >>> model = build_model("vit:mini", image_shape=(28, 28, 1), outputs=10)
        >>> load_weights(model).text
        'vit_mini_fashion5.npz, 102 variables loaded by frostline.rules; fresh: head/kernel, head/bias'
    """
    model = model if isinstance(model, Model) else _as_model(model, weights)
    if classes is not None:
        shape = image_shape or _input_shape(model.network)
        if shape is None:
            raise InputError("image_shape=None: expected (height, width, channels), with which classes are matched")
        return load_for_classes(model, weights, tuple(classes), rules=rules, image_shape=shape, force_base=force_base)
    loaded = load_as_it_is(model, weights, rules=rules, image_shape=image_shape, force_base=force_base)
    holder = loaded.head_from
    given = read_class_names(holder) if holder is not None and pathlib.Path(holder).is_file() else None
    if given is None:
        return loaded
    said = f"its head is for {join_words(given)}, in this order; classes= matches it with those of the data"
    return replace(loaded, text=f"{loaded.text}; {said}")


def _input_shape(network: Any) -> tuple[int, ...] | None:
    """(height, width, channels) of the images of a Keras model, if it says them."""
    inputs = getattr(network, "inputs", None) or [] if is_keras(network) else []
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()
    return shape if len(shape) == 3 and None not in shape else None


def load_as_it_is(
    model: Model,
    weights: PathLike,
    *,
    rules: PathLike | None,
    image_shape: tuple[int, ...] | None,
    force_base: bool = False,
) -> LoadedWeights:
    """Does what ``load_weights`` does, without a look at the classes of a head: what the outputs of a regression need."""
    load = functools.partial(_load_base, model, rules=rules, image_shape=image_shape)
    return _load_chain(model, weights, load, classes=None, image_shape=image_shape, force_base=force_base)


def load_in_order(model: Model, weights: PathLike, classes: Sequence[str], **given: Any) -> LoadedWeights:
    """Does what ``load_weights`` does for a head with a map for each class, which is loaded only if it has these classes.

    A head for another number of classes starts anew where its shapes differ. ``given`` are the other arguments of
    ``load_as_it_is``. Raises PortError, besides, if the file has as many classes, but others or in another order.
    """
    loaded = load_as_it_is(model, weights, **given)
    holder = loaded.head_from
    found = read_class_names(holder) if holder is not None and pathlib.Path(holder).is_file() else None
    if found is None or not classes or same_names(found, classes) or len(found) != len(classes):
        return loaded
    raise porting.PortError(
        f"{holder}: its head is for {join_words(found)}, in this order, the data have {join_words(classes)}; its maps cannot be "
        "matched by name, so rules with the line `fresh head/.*` start the head anew (--rules)"
    )


def _load_chain(
    model: Model,
    weights: PathLike,
    load_base: Callable[[str], LoadedWeights],
    *,
    classes: Sequence[str] | None,
    image_shape: tuple[int, ...] | None,
    force_base: bool,
) -> LoadedWeights:
    """Loads a base, and puts deltas onto it if there are any."""
    chain = parse_chain(weights)
    head = {entry.path: entry.variable.numpy() for entry in list_head(model)} if chain.deltas else {}
    if model.adapters is not None and chain.base.endswith(".npz") and pathlib.Path(chain.base).is_file():
        with Npz(chain.base) as npz:
            names = npz.names()
        if holds_requested(model, names):  # a checkpoint of a run with the same adapters
            attach_requested(model)
    loaded = replace(load_base(chain.base), base=chain.base, deltas=chain.deltas)
    if not chain.deltas:
        attach_requested(model)
        return loaded
    put = put_deltas(model, chain, head, classes=classes, image_shape=image_shape, force=force_base)
    attach_requested(model)  # unless a delta that holds them was put onto them
    _refresh(model)
    text = "; ".join([loaded.text, *put.texts])
    return replace(
        loaded, text=text, classes=put.classes or loaded.classes, head_from=put.head_from or loaded.head_from
    )


def _load_base(
    model: Model, weights: str, *, rules: PathLike | None, image_shape: tuple[int, ...] | None
) -> LoadedWeights:
    name = weights
    if rules is None and model.load is not None and (text := model.load(name)) is not None:
        if name not in WORDS:
            _refresh(model)
        return LoadedWeights(text)
    if name == "none":
        return LoadedWeights("random")
    shipped = name == "auto"
    file = model.shipped_weights if shipped else pathlib.Path(weights)
    if file is None:
        return LoadedWeights(f"random (none ship with {model.name})")
    try:
        ledger = porting.load(model.network, file, rules)
    except porting.PortError as error:
        if not shipped:
            raise
        raise porting.PortError(f"{_does_not_fit(model, image_shape)}\n{error}") from None
    return _ported(model, file, ledger)


def _as_model(network: Any, weights: PathLike) -> Model:
    """A network that ``build_model`` did not make, with what loading a file requires."""
    if not isinstance(network, tf.Module) and not is_keras(network):
        raise InputError(
            f"model={type(network).__name__}: expected what build_model returns, a Keras model or a tf.Module"
        )
    name = type(network).__name__
    if (base := parse_chain(weights).base) in WORDS:
        raise porting.PortError(f"weights={base!r}: {name} is a bare network; expected a file")
    load = None
    if is_keras(network):
        from engine.models.keras.weights import load_weights as load_keras

        load = functools.partial(load_keras, spec=name, network=network)
    shapes = [tuple(entry.variable.shape) for entry in name_variables(network) if "head" in entry.groups]
    outputs = shapes[-1][-1] if shapes and shapes[-1] else 0
    return Model(name, network, outputs, Normalise(), upper="", load=load)


def _ported(model: Model, file: pathlib.Path, ledger: porting.Ledger) -> LoadedWeights:
    """What a load from a ported file did; from now on the model prepares images as the weights expect them."""
    _refresh(model)
    images = None if model.images_chosen else ledger.images
    if images is not None:
        model.normalise = scale_images(images)
    head = {entry.path for entry in list_head(model)} & {entry.target for entry in ledger.loaded}
    own = str(file) if head and file != model.shipped_weights else None
    return LoadedWeights(f"{file.name}, {ledger.summary()}", ledger, images=images, head_from=own)


def _refresh(model: Model) -> None:
    """What must follow an assignment: constants are derived anew, and the images must still be right."""
    name_variables(model.network).refresh()
    if model.check_images is not None:
        model.check_images()


def load_for_classes(
    model: Model,
    weights: PathLike,
    classes: Sequence[str],
    *,
    rules: PathLike | None,
    image_shape: tuple[int, ...],
    force_base: bool = False,
) -> LoadedWeights:
    """Does what ``load_weights`` does, but matches the head by the names of its classes (empty if the data have none).

    A head that is for other classes than the data has its outputs reordered, and those of new classes start anew;
    ``text`` says so, and also if the file or the data do not name their classes. Raises PortError, besides, if classes
    differ in a way that cannot be resolved.
    """
    load = functools.partial(_load_base_for_classes, model, classes=classes, rules=rules, image_shape=image_shape)
    return _load_chain(model, weights, load, classes=classes, image_shape=image_shape, force_base=force_base)


def _load_base_for_classes(
    model: Model,
    weights: str,
    *,
    classes: Sequence[str],
    rules: PathLike | None,
    image_shape: tuple[int, ...],
) -> LoadedWeights:
    if weights in WORDS:
        loaded = _load_base(model, weights, rules=rules, image_shape=image_shape)
        said = compare_own_classes(model, classes) if weights == "auto" else ""
        return replace(loaded, text=loaded.text + (f"; {said}" if said else ""))
    own = rules is not None and str(rules) != "frostline"
    found = compare_classes(model, weights, classes, image_shape=image_shape, own_rules=own)
    if found.match is None:
        loaded = _load_base(model, weights, rules=rules, image_shape=image_shape)
    else:
        with porting.open_tensors(weights) as source:
            ledger = porting.load(model.network, found.view(source), rules)
        loaded = _ported(model, pathlib.Path(weights), ledger)
    said = found.describe(model, weights, loaded.ledger)
    return replace(loaded, text=loaded.text + (f"; {said}" if said else ""), classes=found)


def _does_not_fit(model: Model, image_shape: tuple[int, ...] | None) -> str:
    images = ""
    if image_shape is not None and len(image_shape) == 3:
        height, width, channels = image_shape
        images = f" on images of {height}x{width} with {channels} channel{'s'[: channels - 1]}"
    return (
        f"weights='auto': the weights that ship with {model.name.split(',')[0]} are for {model.shipped_for}; they do "
        f"not fit --model={model.name}{images}. --weights=none starts from random weights (--train=@all then trains all "
        "of them); --weights=FILE loads others, --model chooses another network, such as keras:MobileNetV2."
    )
