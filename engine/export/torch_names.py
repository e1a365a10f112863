"""A ViT or an encoder under the names of PyTorch libraries: safetensors by the rule files read backwards, with their config.json."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from engine import porting
from engine.errors import InputError
from engine.export.checking import ExportError
from engine.export.config import ENCODER
from engine.export.encoder_names import load_encoder, write_encoder
from engine.export.libraries import choose_names
from engine.export.subject import Subject
from engine.export.torch_configs import check_vit, hf_config, hf_preprocessor, timm_config
from engine.files import write_json
from engine.models.bert import Bert
from engine.models.vit import ViT
from engine.porting.errors import PortError
from engine.porting.outward import Outward
from engine.porting.rules import detect
from engine.porting.rules.language import Rule, Rules
from engine.porting.rules.transforms import parse_transform
from engine.porting.safetensors_writer import write_safetensors
from engine.porting.whole_file import VariablesAsTensors
from engine.text import join_some, join_words


def save_tensors(
    subject: Subject, folder: pathlib.Path, rules: str
) -> tuple[Callable[[Any], np.ndarray], dict[str, Any]]:
    """Writes model.safetensors and config.json, and loads them into a new network by the same rules.

    Returns a function from inputs to the outputs of that network, and entries of the record. Raises InputError if the network
    is neither a ViT nor an encoder, the rules are those of the other, or the other library has no such network; ExportError if a
    variable comes back with other bits.
    """
    if subject.several:
        raise InputError(
            f"format=safetensors: the model has several outputs ({join_words(each.task for each in subject.outputs)}), and a ViT "
            "of timm or Hugging Face has one; --format=savedmodel, tflite and onnx take them all"
        )
    network = subject.network
    if not isinstance(network, (ViT, Bert)):
        raise InputError(
            f"format=safetensors: {subject.model} is not one of the built-in ViTs or bert:, whose names timm and Hugging Face know; "
            "keras takes a model that came from Keras, savedmodel and tflite take any, and `frostline apply-delta --names` "
            "writes safetensors of other networks"
        )
    if isinstance(network, Bert) != (rules == ENCODER):
        own = ENCODER if isinstance(network, Bert) else "vit_timm or vit_hf"
        raise InputError(f"rules={rules}: {subject.model} has other names; expected {own}")
    subject = subject.in_float32()
    if isinstance(network, Bert):
        extra = write_encoder(subject, folder)
        return _check_back(subject, lambda made: load_encoder(made, folder)), extra
    check_vit(network.config, rules, model=subject.model)
    tensors = name_tensors(subject, rules)
    path = folder / "model.safetensors"
    specs = {name: (tensors.shape(name), tensors.dtype(name)) for name in tensors.names()}
    write_safetensors(path, specs, tensors.read, metadata={"format": "pt"})
    write_json(folder / "config.json", (timm_config if rules == "vit_timm" else hf_config)(subject))
    if rules == "vit_hf":
        write_json(folder / "preprocessor_config.json", hf_preprocessor(subject))

    def load(made: ViT) -> None:
        with porting.open_tensors(path) as source:
            porting.load(made, source, _with_grid(detect.get_rules(rules), made.grid))

    return _check_back(subject, load), {}


def name_tensors(subject: Subject, rules: str) -> Outward:
    """Every variable under the name, and in the shape, that a rule file reads it from."""
    try:
        return choose_names(rules, VariablesAsTensors(subject.variables), network=subject.network).tensors
    except PortError as error:
        other = "; --rules=vit_timm has names for them" if rules == "vit_hf" else ""
        raise InputError(f"{error}{other}") from None


def _with_grid(rules: Rules, grid: tuple[int, int]) -> Rules:
    """The rules with the patch grid of the file, which the number of its tokens does not tell where it is not square."""
    stated = parse_transform(f"resize_grid({grid[0]}, {grid[1]})")

    def state(rule: Rule) -> Rule:
        made = tuple(stated if each.name == "resize_grid" else each for each in rule.transforms)
        return dataclasses.replace(rule, transforms=made)

    return dataclasses.replace(rules, rules=tuple(map(state, rules.rules)))


def _check_back(subject: Subject, load: Callable[[Any], None]) -> Callable[[Any], np.ndarray]:
    """The outputs of a new network that ``load`` has filled, once every variable of it has the bits of the subject's."""
    network, variables = subject.rebuild()
    load(network)
    wanted = {entry.path: entry.variable.numpy().tobytes() for entry in subject.variables}
    other = [entry.path for entry in variables if entry.variable.numpy().tobytes() != wanted[entry.path]]
    if other:
        raise ExportError(f"safetensors: {join_some(other)} came back with other bits; nothing is written")

    def run(given: Any) -> np.ndarray:
        named = {name: tf.constant(value) for name, value in subject.name_inputs(given).items()}
        return network(subject.inputs.prepare(named), training=False).numpy()

    return run
