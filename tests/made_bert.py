"""A tiny BERT in a folder, as transformers or google-research/bert would write it, and texts that it can learn."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = ("good", "great", "fun", "lovely"), ("bad", "poor", "dull", "awful")
REST = ("the", "a", "film", "plot", "cast", "was", "is", "very", "and", "##s", "##ly", ",", ".")
WORDS = (*SPECIAL, *GOOD, *BAD, *REST)
WIDTH, DEPTH, HIDDEN, POSITIONS = 8, 2, 12, 24
BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "hidden_act": "gelu",
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": len(WORDS),
    "dim": WIDTH,
    "n_layers": DEPTH,
    "n_heads": 2,
    "hidden_dim": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "activation": "gelu",
}


def make_folder(
    path: pathlib.Path,
    *,
    kind: dict[str, Any] = BERT,
    words: tuple[str, ...] = WORDS,
    weights: bool = True,
    **changes: Any,
) -> pathlib.Path:
    """Writes config.json, vocab.txt and, unless told otherwise, random weights; ``changes`` are to the config."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(kind | changes))
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    if weights:
        from safetensors.numpy import save_file

        save_file(make_weights() if kind is BERT else make_distilled(), str(path / "model.safetensors"))
    return path


def make_weights(seed: int = 0, *, dtype: Any = np.float32, pooler: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a BertModel, of transformers' names: linear weights are [out, in]."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        found[name] = (rng.standard_normal(shape) * 0.4 + around).astype(dtype)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        add(f"{name}.weight", WIDTH, around=1.0)
        add(f"{name}.bias", WIDTH)

    for table, rows in (("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2)):
        add(f"embeddings.{table}_embeddings.weight", rows, WIDTH)
    norm("embeddings.LayerNorm")
    for number in range(DEPTH):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", HIDDEN, WIDTH)
        linear(f"{layer}.output.dense", WIDTH, HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    if pooler:
        linear("pooler.dense", WIDTH, WIDTH)
    return found


def make_distilled(seed: int = 0) -> dict[str, np.ndarray]:
    """The same tensors as ``make_weights``, by the names of a DistilBertModel, which has no token types and no pooler."""
    names = {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    found = {}
    for name, value in make_weights(seed, pooler=False).items():
        if "token_type" in name:
            continue
        if name.startswith("encoder.layer."):
            _, _, number, rest = name.split(".", 3)
            module, _, term = rest.rpartition(".")
            name = f"transformer.layer.{number}.{names[module]}.{term}"
        found[f"distilbert.{name}"] = value
    return found


def make_old(seed: int = 0) -> dict[str, np.ndarray]:
    """The same tensors as ``make_weights``, by the names and in the layout of google-research/bert."""
    found = {}
    for name, value in make_weights(seed).items():
        parts = name.replace("encoder.layer.", "encoder.layer_").split(".")
        if parts[-2] == "LayerNorm":
            parts[-1] = {"weight": "gamma", "bias": "beta"}[parts[-1]]
        elif parts[0] == "embeddings":
            parts.pop()
        elif parts[-1] == "weight":
            parts[-1], value = "kernel", value.T
        found["/".join(["bert", *parts])] = np.ascontiguousarray(value)
    return found


def make_reviews(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of several lengths, and whether a word in them praises or blames."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = list(rng.choice(REST[:9], int(rng.integers(2, 12))))
        words.insert(int(rng.integers(0, len(words))), str(rng.choice(BAD if number % 2 else GOOD)))
        found.append((" ".join(words), "bad" if number % 2 else "good"))
    return found


def write_reviews(file: pathlib.Path, count: int, seed: int = 0) -> pathlib.Path:
    """Writes reviews as tab-separated values with a line of names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in make_reviews(count, seed)))
    return file
