"""The encoder of BERT: its variables, its mathematics against numpy, padding, and what a folder may say of it."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import made_bert
import numpy as np
import pytest
import tensorflow as tf

from engine.errors import InputError
from engine.models import bert_folder, build_model
from engine.models.bert import Bert, Config
from engine.models.weights import load_weights
from engine.seeds import example_seeds
from engine.selection.levels import find_parts
from engine.selection.selection import select
from engine.selection.variables import name_variables

SMALL = Config(vocabulary=20, width=8, depth=2, heads=2, hidden=12, positions=10, classes=3)
TOKENS = np.array([[2, 7, 8, 3, 0, 0], [2, 9, 5, 6, 4, 3]], np.int32)


def encoder(*, dtype: Any = tf.float64, **changes: Any) -> Bert:
    """An encoder with every variable random, so that no term is zero by chance."""
    network = Bert(Config(**(vars(SMALL) | changes)), dtype=dtype)
    rng = np.random.default_rng(1)
    for entry in name_variables(network):
        entry.variable.assign(rng.standard_normal(entry.variable.shape) * 0.4 + 0.1)
    return network


def in_numpy(network: Bert, tokens: np.ndarray, types: np.ndarray) -> np.ndarray:
    """The mathematics of google-research/bert's modeling.py: the features of all tokens."""
    v = {entry.path: entry.variable.numpy() for entry in name_variables(network)}

    def norm(x: np.ndarray, path: str) -> np.ndarray:
        deviation = np.sqrt(x.var(-1, keepdims=True) + network.config.norm_epsilon)
        return (x - x.mean(-1, keepdims=True)) / deviation * v[f"{path}/gamma"] + v[f"{path}/beta"]

    def linear(x: np.ndarray, path: str) -> np.ndarray:
        return x @ v[f"{path}/kernel"] + v[f"{path}/bias"]

    count, length = tokens.shape
    x = v["embeddings/word_embedding"][tokens] + v["embeddings/position_embedding"][:length]
    x = norm(x + v["embeddings/type_embedding"][types], "embeddings/norm")
    away = np.where(tokens == network.config.pad, -10000.0, 0.0)[:, None, None, :]
    erf = np.vectorize(math.erf)
    for number in range(network.config.depth):
        block = f"blocks/{number}"
        query, key, value = (
            linear(x, f"{block}/attention/{part}")
            .reshape(count, length, network.config.heads, -1)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1]) + away
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ value
        mixed = linear(mixed.transpose(0, 2, 1, 3).reshape(count, length, -1), f"{block}/attention/out")
        x = norm(x + mixed, f"{block}/norm1")
        hidden = linear(x, f"{block}/mlp/up")
        x = norm(x + linear(hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))), f"{block}/mlp/down"), f"{block}/norm2")
    return x


def test_the_variable_paths_are_exactly_these_in_this_order() -> None:
    def block(number: int) -> list[str]:
        parts = [
            *(f"attention/{part}/{term}" for part in ("query", "key", "value", "out") for term in ("kernel", "bias")),
            "norm1/gamma", "norm1/beta", "mlp/up/kernel", "mlp/up/bias", "mlp/down/kernel", "mlp/down/bias",
            "norm2/gamma", "norm2/beta",
        ]  # fmt: skip
        return [f"blocks/{number}/{part}" for part in parts]

    assert [entry.path for entry in name_variables(encoder(pool="pooler"))] == [
        *(f"embeddings/{table}_embedding" for table in ("word", "position", "type")),
        "embeddings/norm/gamma", "embeddings/norm/beta", *block(0), *block(1), "pooler/kernel", "pooler/bias",
        "head/kernel", "head/bias",
    ]  # fmt: skip
    assert "embeddings/type_embedding" not in name_variables(encoder(types=0)).by_path()


def test_the_features_are_those_of_the_original_code() -> None:
    network, types = encoder(), np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]], np.int32)
    found = network.features({"tokens": tf.constant(TOKENS), "types": tf.constant(types)}).numpy()
    np.testing.assert_allclose(found, in_numpy(network, TOKENS, types), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "cls", "pooler"])
def test_the_head_reads_the_pooled_tokens_without_padding(pool: str) -> None:
    network = encoder(pool=pool)
    features = in_numpy(network, TOKENS, np.zeros_like(TOKENS))
    v = {entry.path: entry.variable.numpy() for entry in name_variables(network)}
    pooled = np.stack([features[0, :4].mean(0), features[1].mean(0)]) if pool == "mean" else features[:, 0]
    if pool == "pooler":
        pooled = np.tanh(pooled @ v["pooler/kernel"] + v["pooler/bias"])
    expected = pooled @ v["head/kernel"] + v["head/bias"]
    np.testing.assert_allclose(network(tf.constant(TOKENS)).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_length_of_the_padding_and_the_neighbours_do_not_matter(pool: str) -> None:
    network = encoder(pool=pool)
    alone = network(tf.constant(TOKENS[:1, :4])).numpy()
    for length in (5, 10):
        padded = np.zeros([2, length], np.int32)
        padded[0, :4], padded[1, :5] = TOKENS[0, :4], [2, 11, 12, 13, 3]
        np.testing.assert_allclose(network(tf.constant(padded)).numpy()[:1], alone, rtol=0, atol=1e-13)


def test_padding_gets_no_gradient() -> None:
    network = encoder(pool="cls")
    table = network.embeddings.word_embedding
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(tf.constant(TOKENS[:1])) ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert not gradient[0].any()
    assert all(gradient[token].any() for token in (2, 7, 8, 3))


def test_a_text_of_padding_alone_gives_finite_logits_and_gradients() -> None:
    network = encoder()
    with tf.GradientTape() as tape:
        logits = network(tf.zeros([2, 4], tf.int32))
    gradients = tape.gradient(logits, [entry.variable for entry in name_variables(network)])
    assert np.isfinite(logits).all()
    assert all(np.isfinite(tf.convert_to_tensor(each)).all() for each in gradients if each is not None)


def test_dropout_draws_from_the_seeds_of_its_examples() -> None:
    network = encoder(dropout=0.3)
    seeds = example_seeds(0, 0, np.arange(2))
    both = network(tf.constant(TOKENS), training=True, seeds=tf.constant(seeds)).numpy()
    second = network(tf.constant(TOKENS[1:]), training=True, seeds=tf.constant(seeds[1:])).numpy()
    np.testing.assert_allclose(both[1:], second, rtol=0, atol=1e-12)
    assert not np.allclose(both, network(tf.constant(TOKENS)).numpy())
    with pytest.raises(ValueError, match="dropout in training needs per-example seeds"):
        network(tf.constant(TOKENS), training=True)


def test_filters_and_levels_see_an_encoder_as_they_see_a_vit() -> None:
    variables = name_variables(encoder())
    assert [part.name for part in find_parts(variables)] == ["blocks/0", "blocks/1"]
    last = [entry.path for entry in select(variables, "@blocks[-1:] @head !@norm").trained]
    assert {path.split("/")[0] + "/" + path.split("/")[1] for path in last} == {"blocks/1", "head/kernel", "head/bias"}
    assert not [path for path in last if "norm" in path]
    attention = [entry.path for entry in variables if "attention" in entry.groups]
    assert len(attention) == 16
    assert {entry.path for entry in variables if "embedding" in entry.groups} == {
        f"embeddings/{table}_embedding" for table in ("word", "position", "type")
    }
    assert {entry.path for entry in variables if "norm" in entry.groups} == {
        f"{layer}/{term}"
        for layer in ("embeddings/norm", *(f"blocks/{n}/norm{m}" for n in (0, 1) for m in (1, 2)))
        for term in ("gamma", "beta")
    }


# --- folders ---


def build(folder: pathlib.Path, options: str = "", **changes: Any) -> Any:
    return build_model(f"bert:{folder}{options}", **({"image_shape": (12,), "outputs": 2} | changes))


def test_a_folder_decides_sizes_and_weights(tmp_path: pathlib.Path) -> None:
    model = build(made_bert.make_folder(tmp_path / "tiny", hidden_dropout_prob=0.1))
    assert model.network.config.norm_epsilon == 1e-12
    assert load_weights(model).text == (
        "model.safetensors, 37 variables loaded by bert_encoder_hf.rules, 2 tensors skipped; fresh: head/kernel, head/bias"
    )
    assert any("dropout 0.1, which is off here" in note for note in model.notes)
    assert model.network(np.zeros([3, 12], np.int32)).shape == (3, 2)


def test_google_means_the_gelu_with_tanh(tmp_path: pathlib.Path) -> None:
    folder = made_bert.make_folder(tmp_path / "old", weights=False)
    (folder / "config.json").rename(folder / "bert_config.json")
    model = build(folder)
    assert model.network.config.gelu == "tanh"
    assert any("gelu=exact changes this" in note for note in model.notes)
    assert build(folder, ",gelu=exact").network.config.gelu == "exact"
    with pytest.raises(InputError, match=r"no model\.safetensors and not one checkpoint.*--weights=none"):
        load_weights(model)
    assert load_weights(model, "none").text == "random"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "describes a 'roberta'; expected bert or distilbert"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish'; expected one of gelu"),
        ({"num_attention_heads": 3}, "3 heads do not divide a width of 8"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000; expected a whole number from 1 to 16,777,216"),
        ({"hidden_size": 1 << 24, "num_attention_heads": 1}, "the model that it describes takes .* that may be used"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None; expected a whole number"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny'; expected a number"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' is built here"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"embedding_size": 4}, "embedding_size is 4"),
    ],
)
def test_a_config_of_another_network_is_refused(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    folder = made_bert.make_folder(tmp_path / "other", weights=False, **changes)
    with pytest.raises(InputError, match=message):
        bert_folder.read_folder(f"bert:{folder}", str(folder))


def test_a_folder_or_an_option_that_is_not_valid_is_refused(tmp_path: pathlib.Path) -> None:
    folder = made_bert.make_folder(tmp_path / "tiny", weights=False)
    for options, message in (
        (",pool=max", "`pool=max` is not an option of an encoder; expected one of pool=mean, pool=cls, pool=pooler"),
        (",dropout=1", "dropout='1' is not a number from 0 to 0.99"),
    ):
        with pytest.raises(InputError, match=message):
            build(folder, options)
    with pytest.raises(InputError, match=r"30 tokens for an example; the model has 24 positions"):
        build(folder, image_shape=(30,))
    with pytest.raises(InputError, match=r"reads texts, but an example of these data has shape \[8, 8, 3\]"):
        build(folder, image_shape=(8, 8, 3))
    with pytest.raises(InputError, match=r"it has neither config\.json nor bert_config\.json"):
        build(tmp_path)
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="is not a JSON object"):
        build(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        build(folder)
