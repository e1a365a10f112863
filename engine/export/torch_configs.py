"""The config.json of timm and of Hugging Face's transformers for a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import InputError
from engine.export.inputs import Images
from engine.export.subject import Subject
from engine.models.vit import SIZES, Config
from engine.text import join_some

_TIMM_EPSILON = 1e-6
Scale = tuple[Sequence[float], Sequence[float]]
# the architecture of timm whose arguments are all replaced; any ViT would do, and these have the same size
_TIMM = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}


def check_vit(config: Config, rules: str, *, model: str) -> None:
    """Raises InputError if the library of these rules has no such ViT."""
    if rules == "vit_timm" and config.norm_epsilon != _TIMM_EPSILON:
        raise InputError(
            f"rules=vit_timm: config.json cannot say norm_epsilon={config.norm_epsilon:g}, and timm's ViTs have "
            f"{_TIMM_EPSILON:g}; --rules=vit_hf can"
        )
    wrong = [
        text
        for text, differs in (
            ("pool=mean (it pools the class token)", config.pool != "token"),
            ("fc_norm", config.fc_norm),
            ("layer_scale", config.layer_scale is not None),
        )
        if differs and rules == "vit_hf"
    ]
    if wrong:
        raise InputError(f"rules=vit_hf: Hugging Face's ViT has no {join_some(wrong)}; --rules=vit_timm writes {model}")


def timm_config(subject: Subject) -> dict[str, Any]:
    """The file with which ``timm.create_model`` builds the same network, and prepares images as it expects."""
    return timm_vit(subject.network.config, labels=subject.outputs[0].labels, scale=_scale(subject))


def timm_vit(config: Config, *, labels: Sequence[str], scale: Scale | None) -> dict[str, Any]:
    """The file for a ViT; ``scale`` is the mean and deviation of each channel, None if they are unknown."""
    height, width, channels = config.image
    size = next((name for name, sizes in SIZES.items() if sizes[0] == config.width), "S")
    arguments: dict[str, Any] = {
        "img_size": [height, width],
        "patch_size": config.patch,
        "in_chans": channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "class_token": config.has_class_token,
        "global_pool": "token" if config.pool == "token" else "avg",
        "fc_norm": config.fc_norm,
    }
    if config.layer_scale is not None:
        arguments["init_values"] = config.layer_scale
    if config.gelu == "tanh":
        arguments["act_layer"] = "gelu_tanh"
    return {
        "architecture": f"vit_{_TIMM.get(size, 'small')}_patch16_224",
        "num_classes": config.classes,
        "num_features": config.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "label_names": list(labels),
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            **({} if scale is None else {"mean": list(scale[0]), "std": list(scale[1])}),
            "num_classes": config.classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def hf_config(subject: Subject) -> dict[str, Any]:
    """The file with which ``ViTForImageClassification.from_pretrained`` builds the same network."""
    return hf_vit(subject.network.config, labels=subject.outputs[0].labels)


def hf_vit(config: Config, *, labels: Sequence[str]) -> dict[str, Any]:
    """The file for a ViT; classes without ``labels`` are called LABEL_0 and so on, as transformers calls them."""
    height, width, channels = config.image
    names = labels if len(labels) == config.classes else [f"LABEL_{number}" for number in range(config.classes)]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": 4 * config.width,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch,
        "num_channels": channels,
        "qkv_bias": True,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def hf_preprocessor(subject: Subject) -> dict[str, Any]:
    """preprocessor_config.json: the scaling of images. (The run crops about the centre before; transformers only resizes.)"""
    images = _images(subject)
    (height, width, _), (mean, std) = images.shape, _scale(subject)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _scale(subject: Subject) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel."""
    images = _images(subject)
    channels, normalise = images.shape[2], images.normalise
    spread = [list(values) * (channels if len(values) == 1 else 1) for values in (normalise.mean, normalise.std)]
    return spread[0], spread[1]


def _images(subject: Subject) -> Images:
    assert isinstance(subject.inputs, Images)  # a ViT takes nothing else
    return subject.inputs
