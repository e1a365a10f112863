"""What ``--weights`` means: ``auto``, ``none``, ``imagenet`` or a file, for every family of models."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from engine import porting
from engine.files import PathLike
from engine.models.spec import Model


@dataclass(frozen=True)
class LoadedWeights:
    """What ``load_weights`` did.

    Attributes:
        text: a line for people, such as ``random`` or the file's name and how many variables it filled.
        ledger: which tensor of the file became which variable; None where no file was ported.
        images: the preprocessing that the file's weights expect, a name in ``engine.models.IMAGES``; None where they
            do not say, or where the user chose one.
    """

    text: str
    ledger: porting.Ledger | None = None
    images: str | None = None


def load_weights(
    model: Model,
    weights: PathLike = "auto",
    *,
    rules: PathLike | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> LoadedWeights:
    """Loads weights into a model that ``build_model`` made.

    Args:
        model: the model; its variables are assigned in place.
        weights: ``"auto"`` (the weights that ship with the model, or ImageNet's where they are already on this machine;
            random ones where there are none), ``"none"`` (random), ``"imagenet"`` (``keras:`` models; Keras downloads
            them), or a file: an .npz, safetensors, Keras or HDF5 file, or a TensorFlow checkpoint.
        rules: which tensor becomes which variable: a rule file, or the name of a shipped one. By default it is chosen
            by the names in the file.
        image_shape: (height, width, channels) of the images, for the message when shipped weights do not fit them.

    Raises:
        PortError: the file cannot be read or does not fit the model.

    Example:
        >>> from engine import build_model, load_weights
        >>> model = build_model("vit:mini", image_shape=(28, 28, 1), outputs=10)
        >>> load_weights(model).text
        'vit_mini_fashion5.npz, 102 variables loaded by frostline.rules; fresh: head/kernel, head/bias'
    """
    name = str(weights)
    if rules is None and model.load is not None and (text := model.load(name)) is not None:
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
    return LoadedWeights(
        f"{file.name}, {ledger.summary()}", ledger, images=None if model.images_chosen else ledger.images
    )


def _does_not_fit(model: Model, image_shape: tuple[int, int, int] | None) -> str:
    images = ""
    if image_shape is not None:
        height, width, channels = image_shape
        images = f" on images of {height}x{width} with {channels} channel{'s'[: channels - 1]}"
    return (
        f"weights='auto': the weights that ship with {model.name.split(',')[0]} are for {model.shipped_for}; they do "
        f"not fit --model={model.name}{images}. --weights=none starts from random weights (--train=@all then trains all "
        "of them); --weights=FILE loads others, --model chooses another network, such as keras:MobileNetV2."
    )
