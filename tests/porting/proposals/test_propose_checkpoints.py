"""Proposals for real TF1 checkpoints into Keras models that are named in different ways."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.porting.proposals.propose import SourceEntry, propose
from engine.porting.rules.language import parse_rules
from engine.selection.variables import name_variables

ROOT = pathlib.Path(__file__).resolve().parents[3]
K = keras.layers
ROLES = {
    "kernel": "weights kernel", "bias": "biases bias", "gamma": "gamma", "beta": "beta", "alpha": "alphas",
    "moving_mean": "moving_mean", "moving_variance": "moving_variance",
}  # fmt: skip


def entries(prefix: str) -> list[SourceEntry]:
    shared = pathlib.Path(os.environ.get("FROSTLINE_SHARED") or ROOT.parent / "shared") / "tf1_checkpoints"
    if not pathlib.Path(f"{shared / prefix.split('/')[0]}").is_dir():
        pytest.skip(f"{prefix} is in neither $FROSTLINE_SHARED nor ../shared")
    reader = tf.compat.v1.train.NewCheckpointReader(f"{shared}/{prefix}")
    types = reader.get_variable_to_dtype_map()
    shapes = sorted(reader.get_variable_to_shape_map().items())
    return [SourceEntry(name, tuple(shape), np.dtype(types[name].as_numpy_dtype)) for name, shape in shapes]


def check(prefix: str, model: Any, layers: dict[str, str], *, at_least: float = 0.9) -> None:
    """``layers``: the model's layer -> the checkpoint's; every line of at least 0.8 must be right."""
    names = entries(prefix)
    proposal = propose(names, name_variables(model))
    known = {entry.name for entry in names}
    for line in proposal.lines:
        layer, _, role = line.target.rpartition("/")
        scope = layers[layer]
        wanted = {f"{scope}/{own}" for own in ROLES.get(role, role).split()} | {scope}
        if line.confidence >= 0.8:
            assert line.source[0] in wanted & known, f"{line.target} <- {line.source} at {line.confidence}"
            assert not any(text.startswith("transpose") for text in line.transforms)
    assert proposal.sure() >= at_least, proposal.table()
    assert len(parse_rules(proposal.rules_text()).rules) == sum(line.confidence >= 0.8 for line in proposal.lines)


PNET = ("conv1", "conv1", "conv2", "conv2", "conv3", "conv3", "conv4_1", "conv4_2", "conv4_3")
PNET_NAMES = {
    "automatic": "conv2d p_re_lu conv2d_1 p_re_lu_1 conv2d_2 p_re_lu_2 conv2d_3 conv2d_4 conv2d_5",
    "by hand": "conv1 prelu1 conv2 prelu2 conv3 prelu3 cls_prob bbox_pred landmark_pred",
    "as the paper": "stage1_conv stage1_act stage2_conv stage2_act stage3_conv stage3_act face box points",
    "as the checkpoint": "conv1 conv1_prelu conv2 conv2_prelu conv3 conv3_prelu conv4_1 conv4_2 conv4_3",
}


@pytest.mark.parametrize("style", PNET_NAMES)
def test_pnet(style: str) -> None:
    names = PNET_NAMES[style].split()
    own = [None if style == "automatic" else name for name in names]
    inputs = x = keras.Input((None, None, 3))
    for number, filters in enumerate((10, 16, 32)):
        x = K.Conv2D(filters, 3, name=own[2 * number])(x)
        x = K.PReLU(shared_axes=[1, 2], name=own[2 * number + 1])(x)
    heads = [K.Conv2D(filters, 1, name=name)(x) for filters, name in zip((2, 4, 10), own[6:], strict=True)]
    check("mtcnn_PNet_landmark/PNet-18", keras.Model(inputs, heads), dict(zip(names, PNET, strict=True)))


class Convolution(K.Layer):
    """A block of its own class, its layers named by Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = K.Conv2D(128, 3, padding="same"), K.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.norm.build((None, None, None, 128))

    def call(self, x: Any) -> Any:
        return self.norm(keras.ops.relu(self.conv(x)))


@pytest.mark.parametrize("style", ["automatic", "by hand", "blocks", "from zero", "own class"])
def test_musicnn(style: str) -> None:
    first, conv, norm, last = {
        "automatic": ("batch_normalization", "conv2d_{0}", "batch_normalization_{1}", "dense"),
        "by hand": ("input_norm", "conv{1}", "bn{1}", "logits"),
        "blocks": ("norm_in", "block_{1}_conv", "block_{1}_batchnorm", "classifier"),
        "from zero": ("bn_input", "cnn_{0}", "cnn_{0}_bn", "tags"),
        "own class": ("input_norm", "convolution_{0}/conv2d_{0}", "convolution_{0}/batch_normalization_{0}", "tags"),
    }[style]
    named, automatic = style in ("by hand", "blocks", "from zero"), style == "automatic"
    layers = {first: "batch_normalization", last: "dense"}
    inputs = keras.Input((187, 96, 1))
    x = K.BatchNormalization(name=None if automatic else first)(inputs)
    for n in range(5):
        names = [text.format(n, n + 1).replace("_0/", "/").removesuffix("_0" * (not named)) for text in (conv, norm)]
        layers |= {names[0]: f"{n + 1}CNN", names[1]: f"batch_normalization_{n + 1}"}
        if style == "own class":
            x = Convolution()(x)
        else:
            own = names if named else [None, None]
            x = K.Conv2D(128, 3, padding="same", activation="relu", name=own[0])(x)
            x = K.BatchNormalization(name=own[1])(x)
    x = K.GlobalAveragePooling2D()(x)
    outputs = K.Dense(50, name=None if automatic else last)(K.Concatenate()([x, x]))
    check("musicnn_MTT_vgg/", keras.Model(inputs, outputs), layers)


class Positions(K.Layer):
    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(512, 128), name="embeddings")

    def call(self, x: Any) -> Any:
        return x + self.table[:16]


class Block(K.Layer):
    """An encoder block; ``names``: query key value output norm1 up down norm2, or those of multi-head attention."""

    def __init__(self, names: list[str | None], **options: Any) -> None:
        super().__init__(**options)
        self.heads = len(names) == 5
        if self.heads:
            self.attention = K.MultiHeadAttention(2, 64, name=names[0])
        else:
            self.q, self.k, self.v, self.o = (K.Dense(128, name=name) for name in names[:4])
        self.norm1, self.up = K.LayerNormalization(name=names[-4]), K.Dense(512, name=names[-3])
        self.down, self.norm2 = K.Dense(128, name=names[-2]), K.LayerNormalization(name=names[-1])

    def call(self, x: Any) -> Any:
        mixed = self.attention(x, x) if self.heads else self.o(self.q(x) + self.k(x) + self.v(x))
        x = self.norm1(x + mixed)
        return self.norm2(x + self.down(self.up(x)))


BERT_PARTS = (
    "attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense",
    "attention/output/LayerNorm", "intermediate/dense", "output/dense", "output/LayerNorm",
)  # fmt: skip
# names of: word, position, segment, norm; block; what a block has; pooler, head
BERT = {
    "clear": (
        "word_embeddings position_embeddings token_type_embeddings embeddings_norm", "layer_{0}",
        "query key value attention_output attention_norm intermediate output output_norm", "pooler classifier",
    ),
    "short": ("tok_emb pos_emb seg_emb emb_ln", "block{1}", "q k v out ln1 fc1 fc2 ln2", "pooler head"),
    "hub": (
        "token_embedding position_embedding segment_embedding embeddings_layer_norm", "transformer_layer_{0}",
        "self_attention_layer self_attention_layer_norm feedforward_intermediate_dense feedforward_output_dense "
        "feedforward_layer_norm", "pooled_dense logits",
    ),
    "garden": (
        "word_embeddings position_embedding type_embeddings embeddings_layer_norm", "transformer_layer_{0}",
        "self_attention self_attention_layer_norm intermediate output output_layer_norm", "pooler_transform score",
    ),
    "automatic": (
        "embedding positions embedding_1 layer_normalization", "block_{0}",
        "multi_head_attention_{0} layer_normalization_{a} dense_{b} dense_{c} layer_normalization_{d}",
        "dense_4 dense_5",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "style", [pytest.param(style, marks=[pytest.mark.slow] * (number % 2)) for number, style in enumerate(BERT)]
)
def test_bert(style: str) -> None:
    tables, block, parts, last = BERT[style]
    automatic = style == "automatic"
    own = [None if automatic else name for name in (*tables.split(), *last.split())]
    words, segments = keras.Input((16,), dtype="int32"), keras.Input((16,), dtype="int32")
    x = Positions(name=own[1])(K.Embedding(30522, 128, name=own[0])(words))
    x = K.LayerNormalization(name=own[3])(x + K.Embedding(2, 128, name=own[2])(segments))
    layers = dict(
        zip(
            tables.split(),
            [f"bert/embeddings/{n}" for n in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")],
            strict=True,
        )
    )  # fmt: skip
    for n in range(2):
        numbers = dict(zip("abcd", (2 * n + 1, 2 * n, 2 * n + 1, 2 * n + 2), strict=True))
        names = [text.format(n, n + 1, **numbers).removesuffix("_0") for text in parts.split()]
        path = block.format(n, n + 1)
        path = path.removesuffix("_0") if automatic else path
        x = Block([None] * len(names) if automatic else list(names), name=None if automatic else path)(x)
        if len(names) == 5:
            names = [f"{names[0]}/{w}" for w in ("query", "key", "value", "attention_output")] + names[1:]
        layers |= {f"{path}/{a}": f"bert/encoder/layer_{n}/{b}" for a, b in zip(names, BERT_PARTS, strict=True)}
    x = K.Dense(128, name=own[4])(x[:, 0])
    x = K.Dense(1, name=own[5])(x)
    layers |= dict(zip(last.split(), ("bert/pooler/dense", "dense"), strict=True))
    check("bleurt_index_only/variables", keras.Model([words, segments], x), layers)
