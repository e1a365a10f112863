"""What is known about a network's config.json in timm and in transformers, from its tensors; never more than that."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.export.torch_configs import check_vit, hf_vit, timm_vit
from engine.files import FileError
from engine.models.vit import ViT
from engine.porting.outward import Outward
from engine.reading import read_file

_LARGEST = 1 << 20  # bytes of bert_config.json
_MOST_UNITS = 36  # of a stage: ResNet152


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is known besides tensors.

    Attributes:
        network: the model, if there is one.
        source: the file that the values came from.
        labels: the names of the classes; empty if they are unknown.
        image_size: height and width of the images in pixels, if they are known.
        scale: the mean and deviation of each channel, if they are known.
    """

    network: Any = None
    source: pathlib.Path | None = None
    labels: Sequence[str] = ()
    image_size: tuple[int, int] | None = None
    scale: tuple[Sequence[float], Sequence[float]] | None = field(default=None)


def vit_timm(tensors: Outward, context: Context) -> dict[str, Any] | str:
    if not isinstance(context.network, ViT):
        return "the number of heads is not in the weights; --target says which ViT they belong to"
    check_vit(context.network.config, "vit_timm", model="this ViT")
    return timm_vit(context.network.config, labels=context.labels, scale=context.scale)


def vit_hf(tensors: Outward, context: Context) -> dict[str, Any] | str:
    if not isinstance(context.network, ViT):
        return "the number of heads is not in the weights; --target says which ViT they belong to"
    check_vit(context.network.config, "vit_hf", model="this ViT")
    return hf_vit(context.network.config, labels=context.labels)


def resnet_timm(tensors: Outward, context: Context) -> dict[str, Any] | str:
    return "no network of timm strides where this one does"


def mobilenetv2_timm(tensors: Outward, context: Context) -> dict[str, Any] | str:
    found = [tensors.shape(name)[0] for name in ("conv_stem.weight", "blocks.6.0.conv_pwl.weight", "conv_head.weight")]
    if found != [32, 320, 1280]:
        return "the widths are not those of mobilenetv2_100"
    return _timm("mobilenetv2_100", tensors, context, {"bn_eps": 1e-3, "pad_type": "same"})


def efficientnet_timm(tensors: Outward, context: Context) -> dict[str, Any] | str:
    depth = sum(name.endswith((".conv_pwl.weight", "conv_pw.weight")) for name in tensors.names())
    found = [tensors.shape(name)[0] for name in ("conv_stem.weight", "blocks.6.0.conv_pwl.weight", "conv_head.weight")]
    if (depth, found) != (31, [32, 320, 1280]):
        return "the widths and depths are not those of tf_efficientnet_b0"
    return _timm("tf_efficientnet_b0", tensors, context, {})


def _timm(name: str, tensors: Outward, context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    classes = tensors.shape("classifier.weight")[0] if "classifier.weight" in tensors.names() else 0
    channels = tensors.shape("conv_stem.weight")[1]
    made: dict[str, Any] = {"num_classes": classes, "first_conv": "conv_stem", "classifier": "classifier"}
    if context.image_size is not None:
        made["input_size"] = [channels, *context.image_size]
    if context.scale is not None:
        made |= {"mean": list(context.scale[0]), "std": list(context.scale[1])}
    arguments = arguments | ({"in_chans": channels} if channels != 3 else {})
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": 1280,
        "global_pool": "avg",
        **({"model_args": arguments} if arguments else {}),
        **({"label_names": list(context.labels)} if len(context.labels) == classes > 0 else {}),
        "pretrained_cfg": made,
    }


def resnet_hf(tensors: Outward, context: Context) -> dict[str, Any] | str:
    names, place = set(tensors.names()), "resnet.encoder.stages.{}.layers.{}.{}.convolution.weight"
    stages = [number for number in range(4) if place.format(number, 0, "shortcut") in names]
    depths = [sum(place.format(stage, unit, "layer.0") in names for unit in range(_MOST_UNITS)) for stage in stages]
    width, channels = tensors.shape("resnet.embedder.embedder.convolution.weight")[:2]
    made = {
        "model_type": "resnet",
        "num_channels": channels,
        "embedding_size": width,
        "hidden_sizes": [tensors.shape(place.format(stage, 0, "shortcut"))[0] for stage in stages],
        "depths": depths,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": True,
    }
    if "classifier.1.weight" not in names:
        return {"architectures": ["ResNetModel"], **made}
    return {
        "architectures": ["ResNetForImageClassification"],
        **made,
        **_labels(context.labels, tensors.shape("classifier.1.weight")[0]),
    }


def bert_hf(tensors: Outward, context: Context) -> dict[str, Any] | str:
    names = set(tensors.names())
    file = None if context.source is None else _beside(context.source)
    if file is None:
        return "the number of heads is not in the weights; bert_config.json, beside the checkpoint, would say it"
    try:
        given = json.loads(read_file(file, _LARGEST))
    except (FileError, OSError, ValueError) as error:
        return f"{file} cannot be read ({error})"
    vocabulary, width = tensors.shape("bert.embeddings.word_embeddings.weight")
    known = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith(".attention.self.query.weight") for name in names),
        "intermediate_size": tensors.shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": tensors.shape("bert.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": tensors.shape("bert.embeddings.token_type_embeddings.weight")[0],
    }
    if not isinstance(given, dict) or (
        other := [key for key, value in known.items() if given.get(key, value) != value]
    ):
        return f"{file} is of another network" + (f" ({', '.join(other)})" if isinstance(given, dict) else "")
    kept = (
        "num_attention_heads",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
    )
    if not isinstance(given.get("num_attention_heads"), int):
        return f"{file} does not say num_attention_heads"
    head = {"classifier.weight": "BertForSequenceClassification", "cls.predictions.bias": "BertForPreTraining"}
    made = {
        "architectures": [next((kind for name, kind in head.items() if name in names), "BertModel")],
        "model_type": "bert",
        **known,
        **{key: given[key] for key in kept if key in given},
        "layer_norm_eps": 1e-12,  # of tf.contrib.layers.layer_norm
    }
    if "classifier.weight" in names:
        made |= _labels(context.labels, tensors.shape("classifier.weight")[0])
    return made


def _beside(source: pathlib.Path) -> pathlib.Path | None:
    folders = (source, source.parent, source.parent.parent)
    return next((folder / "bert_config.json" for folder in folders if (folder / "bert_config.json").is_file()), None)


def _labels(labels: Sequence[str], classes: int) -> dict[str, Any]:
    """The names of the classes; transformers' own where they are unknown, which say how many there are."""
    names = list(labels) if len(labels) == classes else [f"LABEL_{number}" for number in range(classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
