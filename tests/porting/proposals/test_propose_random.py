"""Models renamed at random, on both sides: no line of 0.8 or more may be wrong, whatever the names."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import tensorflow as tf

from engine.porting.proposals.propose import SourceEntry, propose
from engine.selection.variables import NamedVariable

Shape = tuple[int, ...]
Layer = tuple[tuple[tuple[str, int], ...], str, Shape]  # (word, number) on the way, what it is, shape

ROLES = {
    "kernel": "kernel weights weight w W", "bias": "bias biases b", "gamma": "gamma scale", "beta": "beta offset bias",
    "mean": "moving_mean running_mean mean", "variance": "moving_variance running_var var",
    "table": "embeddings embedding_table embedding",
}  # fmt: skip
WAYS = {
    "block": "block layer stage conv_block b", "stage": "stage group block conv", "unit": "unit res block residual",
    "conv": "conv cnn c Conv", "layer": "layer block encoder_layer encoder/layer h encoderblock",
    "fc": "fc dense linear hidden", "tower": "tower branch path",
}  # fmt: skip
KINDS = {
    "conv": "conv cnn conv2d Conv", "norm": "bn BatchNorm batch_norm norm batchnorm", "dense": "dense fc linear",
    "head": "head logits classifier predictions fc_out output", "stem": "stem conv0 conv_stem stem/conv initial_conv",
    "shortcut": "shortcut downsample proj skip", "token": "word_embeddings token_embedding tok_emb wte",
    "position": "position_embeddings pos_emb wpe positional_embedding",
    "first": "embeddings/LayerNorm emb_ln embedding_norm embeddings_layer_norm",
    "q": "attention/query attn/q self_attention/query att/self/query",
    "k": "attention/key attn/k self_attention/key att/self/key",
    "v": "attention/value attn/v self_attention/value att/self/value",
    "o": "attention/output/dense attn/out self_attention/output att/proj",
    "norm_a": "attention/output/LayerNorm attn_norm ln1 norm1 attention_layer_norm self_attention_layer_norm",
    "norm_f": "output/LayerNorm ffn_norm ln2 norm2 output_layer_norm final_layer_norm",
    "up": "intermediate/dense mlp/fc1 ffn/up ffn/dense1 feed_forward/wi",
    "down": "output/dense mlp/fc2 ffn/down ffn/dense2 feed_forward/wo", "pool": "pooler/dense pooler pooled_dense",
}  # fmt: skip
TOGETHER = ("q k v o", "norm_a norm_f", "up down")  # named in one style
AUTOMATIC = {"conv": "conv2d", "stem": "conv2d", "shortcut": "conv2d", "norm": "batch_normalization"} | dict.fromkeys(
    ("dense", "head", "pool", "up", "down"), "dense"
)


def network(kind: str, rng: random.Random) -> list[Layer]:
    width, layers, now = rng.choice([8, 16, 32]), [], 3
    if kind == "plain":
        for n in range(rng.randint(2, 8)):
            out = rng.choice([width, 2 * width, 4 * width])
            layers.append(((("block", n),), "conv", (3, 3, now, out)))
            layers += [((("block", n),), "norm", (out,))] * (rng.random() < 0.7)
            now = out
    elif kind == "residual":
        layers, now = [((), "stem", (7, 7, 3, width))], width
        for stage, unit in [(s, u) for s in range(3) for u in range(rng.randint(1, 3))]:
            at, out = (("stage", stage), ("unit", unit)), width * 2**stage
            layers += [(at, "shortcut", (1, 1, now, out))] * (now != out)
            for n in range(2):
                layers += [((*at, ("conv", n)), "conv", (3, 3, now, out)), ((*at, ("conv", n)), "norm", (out,))]
                now = out
    elif kind == "transformer":
        layers = [((), "token", (97, width)), ((), "position", (16, width)), ((), "first", (width,))]
        for n in range(rng.randint(1, 12)):
            parts = [(w, (width, width)) for w in "qkvo"] + [("norm_a", (width,)), ("up", (width, 4 * width))]
            layers += [((("layer", n),), w, s) for w, s in [*parts, ("down", (4 * width, width)), ("norm_f", (width,))]]
        layers.append(((), "pool", (width, width)))
        now = width
    elif kind == "towers":
        for t, n in [(t, n) for t in range(2) for n in range(2)]:
            layers.append(((("tower", t), ("conv", n)), "conv", (3, 3, width if n else 3, width)))
        now = 2 * width
    else:
        for n in range(rng.randint(2, 7)):
            out = rng.choice([width, now])
            layers.append(((("fc", n),), "dense", (now, out)))
            now = out
    return [*layers, ((), "head", (now, rng.choice([2, 5, 10])))]


class Style:
    """One way to name everything."""

    def __init__(self, rng: random.Random) -> None:
        self.role, self.way, self.kind = (
            {key: rng.choice(text.split()) for key, text in table.items()} for table in (ROLES, WAYS, KINDS)
        )
        for group in TOGETHER:
            number = rng.randrange(4)
            self.kind |= {key: KINDS[key].split()[number] for key in group.split()}
        self.base, self.between, self.numbered = rng.choice([0, 1]), rng.choice("//_."), rng.choice(["_", "", "_"])
        self.prefix = rng.choice(["", "", "model/", "net/", "bert/", "resnet_v1_50/"])
        self.automatic, self.unnumbered, self.last = rng.random() < 0.25, rng.random() < 0.2, rng.choice("///_.")
        if self.last == "_":
            self.role["gamma"] = "gamma"  # `layer_scale` would be something else

    def scopes(self, layers: list[Layer]) -> list[str]:
        found, made = [], collections.Counter[str]()
        for way, kind, _ in layers:
            if self.automatic and kind in AUTOMATIC:
                word = AUTOMATIC[kind]
                found.append(f"{self.prefix}{word}_{made[word]}".removesuffix("_0"))
                made[word] += 1
                continue
            parts = []
            for word, number in way:
                bare = self.unnumbered and number == 0
                parts.append(self.way[word] + ("" if bare else f"{self.numbered}{number + self.base}"))
            if not way or {"conv": "conv", "dense": "fc"}.get(kind) != way[-1][0]:
                parts.append(self.kind[kind])
            found.append(self.prefix + self.between.join(parts))
        return found


def shapes(kind: str, shape: Shape) -> dict[str, Shape]:
    if kind in ("token", "position"):
        return {"table": shape}
    if len(shape) == 1:
        return dict.fromkeys(("gamma", "beta", "mean", "variance") if kind == "norm" else ("gamma", "beta"), shape)
    return {"kernel": shape, "bias": shape[-1:]}


def side(layers: list[Layer], style: Style) -> list[tuple[str, Shape]]:
    found = []
    for (_, kind, shape), scope in zip(layers, style.scopes(layers), strict=True):
        found += [(f"{scope}{style.last}{style.role[role]}", s) for role, s in shapes(kind, shape).items()]
    return found


@pytest.mark.parametrize("kind", ["plain", "residual", "transformer", "towers", "dense"])
def test_whatever_the_names_no_sure_line_is_wrong(kind: str) -> None:
    claimed = variables = 0
    for seed in range(25):
        rng = random.Random(f"{kind}{seed}")
        layers = network(kind, rng)
        left, right = Style(rng), Style(rng)
        source, target = side(layers, left), side(layers, right)
        truth = {path: name for (name, _), (path, _) in zip(source, target, strict=True)}
        if len(truth) < len(target) or len(set(truth.values())) < len(source):
            continue  # a style that names two layers alike
        change = rng.choice(["none", "extra", "fewer sources", "fewer targets"])
        if change == "extra":
            source += [(f"{rng.choice(['foo', 'aux/dense', 'other/bar'])}_{n}/kernel", rng.choice(source)[1]) for n in range(3)]  # fmt: skip
        elif change != "none":
            lost = rng.randrange(len(layers))
            fewer = side(layers[lost : lost + 1], right)  # as many as the layer has
            before = len(side(layers[:lost], right))
            del (source if change == "fewer sources" else target)[before : before + len(fewer)]
        rng.shuffle(source)
        proposal = propose(
            [SourceEntry(name, shape, np.dtype(np.float32)) for name, shape in source],
            [
                NamedVariable(path, (), tf.TensorSpec(shape, tf.float32), "weight", "", frozenset(), None, ())
                for path, shape in target
            ],
        )
        for line in proposal.lines:
            if line.confidence >= 0.8:
                assert line.source == (truth[line.target],), (seed, change, line)
                assert "transpose" not in str(line.transforms)
        claimed += sum(line.confidence >= 0.8 for line in proposal.lines)
        variables += len(target)
    assert claimed > 0.2 * variables  # who claims nothing is never wrong
