"""An encoder of texts under transformers' names, as ``bert:DIR`` and ``from_pretrained`` read it: BERT's, or DistilBERT's.

The names follow from the network: one without token types is a DistilBERT. Its head is in the same file where transformers has a
head that reads what this one reads (BertForSequenceClassification, behind the pooler), else in head.safetensors.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.export.subject import Subject
from engine.files import write_json
from engine.models.bert import Config
from engine.models.bert_head import BESIDE, POOL, TRUNK, head_rules, load_with_head, with_head
from engine.porting.outward import Outward
from engine.porting.rules import detect
from engine.porting.safetensors_writer import write_safetensors
from engine.porting.whole_file import VariablesAsTensors

_HEAD = ("head/kernel", "head/bias")
_PROBLEMS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification", "mse": "regression"}


def write_encoder(subject: Subject, folder: pathlib.Path) -> dict[str, Any]:
    """Writes model.safetensors, config.json and, where the head has no place there, head.safetensors; returns entries of the record.

    Raises InputError if transformers has no such network.
    """
    config: Config = subject.network.config
    distilled = not config.types
    if distilled and config.pool == "pooler":
        raise InputError(
            f"format=safetensors: {subject.model} has a pooler, and DistilBERT's layout has none; --format=savedmodel holds it"
        )
    inside = config.pool == "pooler"
    rules = detect.get_rules("distilbert_hf" if distilled else "bert_encoder_hf")
    values = VariablesAsTensors(subject.variables)
    reason = f"it reads pool={config.pool}, for which the layout has no head; it is in {BESIDE}"
    tensors = Outward(
        values,
        with_head(rules) if inside else rules,
        absent={} if inside else dict.fromkeys(_HEAD, reason),
        under=("distilbert." if distilled else "bert.", "classifier."),
    )
    _write(folder / TRUNK, tensors, {"format": "pt"})
    if not inside:
        head = Outward(_Some(values), head_rules())
        _write(folder / BESIDE, head, {"format": "pt", POOL: config.pool})
    write_json(
        folder / "config.json", (_describe_distilled if distilled else _describe_bert)(config) | _labels(subject)
    )
    return {"names": rules.name, "head": {"file": TRUNK if inside else BESIDE, "reads": config.pool}}


def load_encoder(network: Any, folder: pathlib.Path) -> None:
    """Loads what ``write_encoder`` wrote, as ``bert:DIR,head=own`` does."""
    head = folder / BESIDE
    load_with_head(network, folder / TRUNK, head if head.is_file() else folder / TRUNK)("auto")


def _write(path: pathlib.Path, tensors: Outward, metadata: dict[str, str]) -> None:
    specs = {name: (tensors.shape(name), tensors.dtype(name)) for name in tensors.names()}
    write_safetensors(path, specs, tensors.read, metadata=metadata)


class _Some:
    """The variables of the head alone, as tensors."""

    def __init__(self, values: VariablesAsTensors) -> None:
        self._values = values

    def names(self) -> list[str]:
        return [name for name in self._values.names() if name in _HEAD]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._values.dtype(name)

    def read(self, name: str) -> np.ndarray:
        return self._values.read(name)


def _describe_bert(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["BertForSequenceClassification" if config.pool == "pooler" else "BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.types,
        "pad_token_id": config.pad,
        "hidden_act": _name_gelu(config),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_epsilon,
        "torch_dtype": "float32",
    }


def _describe_distilled(config: Config) -> dict[str, Any]:
    return {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": config.vocabulary,
        "dim": config.width,
        "n_layers": config.depth,
        "n_heads": config.heads,
        "hidden_dim": config.hidden,
        "max_position_embeddings": config.positions,
        "sinusoidal_pos_embds": False,
        "pad_token_id": config.pad,
        "activation": _name_gelu(config),
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "torch_dtype": "float32",
    }


def _name_gelu(config: Config) -> str:
    return "gelu" if config.gelu == "exact" else "gelu_new"


def _labels(subject: Subject) -> dict[str, Any]:
    """The names of the classes, as many as there are outputs; transformers' own names where the data have none."""
    output, count = subject.outputs[0], subject.network.config.classes
    own = output.class_names or output.labels
    names = list(own) if len(own) == count else [f"LABEL_{number}" for number in range(count)]
    return {
        "problem_type": _PROBLEMS[output.loss],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
