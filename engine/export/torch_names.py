"""A ViT under the names of PyTorch libraries: safetensors by the rule files read backwards, with their config.json."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import tensorflow as tf

from engine import porting
from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.subject import Subject
from engine.export.torch_configs import hf_config, hf_preprocessor, timm_config
from engine.files import write_atomically, write_json
from engine.models.vit import ViT
from engine.porting.rules import detect
from engine.porting.rules.inverse import infer_source_shape, invert_transforms
from engine.porting.rules.language import Rule, Rules
from engine.porting.rules.transforms import Spec, Target, parse_transform
from engine.text import join_some

_TIMM_EPSILON = 1e-6
_DTYPES = {"float32": "F32", "float64": "F64"}


def save_tensors(subject: Subject, folder: pathlib.Path, rules: str) -> Callable[[np.ndarray], np.ndarray]:
    """Writes model.safetensors and config.json, and loads them into a new network by the same rules.

    Returns a function from float images to the outputs of that network. Raises InputError if the network is not a ViT, or
    the other library has no such ViT; ExportError if a variable comes back with other bits.
    """
    network = subject.network
    if not isinstance(network, ViT):
        raise InputError(
            f"format=safetensors: {subject.model} is not one of the built-in ViTs, whose names timm and Hugging Face know; "
            "keras takes a model that came from Keras, savedmodel and tflite take any"
        )
    subject = subject.in_float32()
    if rules == "vit_hf":
        _check_hf(subject)
    elif (epsilon := network.config.norm_epsilon) != _TIMM_EPSILON:
        raise InputError(
            f"rules=vit_timm: config.json cannot say norm_epsilon={epsilon:g}, and timm's ViTs have {_TIMM_EPSILON:g}; "
            "--rules=vit_hf can"
        )
    tensors = name_tensors(subject, rules)
    path = folder / "model.safetensors"
    write_safetensors(path, tensors)
    write_json(folder / "config.json", (timm_config if rules == "vit_timm" else hf_config)(subject))
    if rules == "vit_hf":
        write_json(folder / "preprocessor_config.json", hf_preprocessor(subject))
    return _load_back(subject, path, rules)


def name_tensors(subject: Subject, rules: str) -> dict[str, np.ndarray]:
    """Every variable under the name, and in the shape, that a rule file reads it from."""
    made: dict[str, np.ndarray] = {}
    nameless = []
    for entry in subject.variables:
        found = next(((r, m) for r in detect.get_rules(rules).rules if (m := r.pattern.fullmatch(entry.path))), None)
        if found is None:
            nameless.append(entry.path)
            continue
        rule, match = found
        (name,) = rule.expand(match)
        value = entry.variable.numpy()
        spec = Spec(_source_shape(rule, value.shape, subject.network), value.dtype)
        name = _prefixed(name, rules)
        whole = made.setdefault(name, np.zeros(spec.shape, spec.dtype))
        given: dict[str, Any] = {"read": functools.partial(lambda whole, _: whole, whole)}
        (made[name],) = invert_transforms(value, [spec], rule.transforms, Target(value.shape), **given)
    if nameless:
        other = "; --rules=vit_timm has names for them" if rules == "vit_hf" else ""
        raise InputError(f"rules={rules}: there is no name for {join_some(nameless)}{other}")
    return {name: np.ascontiguousarray(made[name]) for name in sorted(made)}


def _source_shape(rule: Rule, shape: tuple[int, ...], network: Any) -> tuple[int, ...]:
    """The shape of the tensor that a rule reads: a part of it, or the filters of the patches, where transforms do not tell."""
    config = network.config
    names = [transform.name for transform in rule.transforms]
    if "reshape" in names:
        return (config.width, config.image[2], config.patch, config.patch)
    if names[:1] == ["split"]:
        axis, parts, _ = rule.transforms[0].arguments
        part = infer_source_shape(shape, rule.transforms[1:])
        return tuple(length * parts if number == axis else length for number, length in enumerate(part))
    kept = [transform for transform in rule.transforms if transform.name != "resize_grid"]  # the grid is its own
    return infer_source_shape(shape, kept)


def _prefixed(name: str, rules: str) -> str:
    """ViTForImageClassification keeps its trunk under ``vit``."""
    return f"vit.{name}" if rules == "vit_hf" and not name.startswith("classifier.") else name


def _check_hf(subject: Subject) -> None:
    """Raises InputError if Hugging Face's ViTForImageClassification is not what this ViT is."""
    config = subject.network.config
    wrong = [
        text
        for text, differs in (
            ("pool=mean (it pools the class token)", config.pool != "token"),
            ("fc_norm", config.fc_norm),
            ("layer_scale", config.layer_scale is not None),
        )
        if differs
    ]
    if wrong:
        raise InputError(
            f"rules=vit_hf: Hugging Face's ViT has no {join_some(wrong)}; --rules=vit_timm writes {subject.model}"
        )


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file (github.com/huggingface/safetensors): a JSON header, then the tensors one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, value in tensors.items():
        end = at + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())

    write_atomically(path, write)


def _with_grid(rules: Rules, grid: tuple[int, int]) -> Rules:
    """The rules with the patch grid of the file, which the number of its tokens does not tell where it is not square."""
    stated = parse_transform(f"resize_grid({grid[0]}, {grid[1]})")

    def state(rule: Rule) -> Rule:
        made = tuple(stated if each.name == "resize_grid" else each for each in rule.transforms)
        return dataclasses.replace(rule, transforms=made)

    return dataclasses.replace(rules, rules=tuple(map(state, rules.rules)))


def _load_back(subject: Subject, path: pathlib.Path, rules: str) -> Callable[[np.ndarray], np.ndarray]:
    network, variables = subject.rebuild()
    with porting.open_tensors(path) as source:
        porting.load(network, source, _with_grid(detect.get_rules(rules), network.grid))
    wanted = {entry.path: entry.variable.numpy().tobytes() for entry in subject.variables}
    other = [entry.path for entry in variables if entry.variable.numpy().tobytes() != wanted[entry.path]]
    if other:
        raise ExportError(f"safetensors: {join_some(other)} came back with other bits; nothing is written")

    def run(images: np.ndarray) -> np.ndarray:
        return network(subject.normalise(tf.constant(images)), training=False).numpy()

    return run
