"""ViT: its variables, its sizes, its mathematics against numpy, and randomness by example."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine.errors import InputError
from engine.models import build_model, layers
from engine.models.vit import Config, ViT
from engine.seeds import example_seeds
from engine.selection.variables import name_variables

SMALL = Config(width=12, depth=2, heads=3, patch=4, image=(8, 12, 2), classes=5)


def vit(config: Config = SMALL, *, dtype: Any = tf.float64, **changes: Any) -> ViT:
    """A small ViT with every variable random, so that no term is zero by chance."""
    network = ViT(dataclasses.replace(config, **changes), dtype=dtype)
    rng = np.random.default_rng(1)
    for entry in name_variables(network):
        entry.variable.assign(rng.standard_normal(entry.variable.shape) * 0.5 + 0.1)
    return network


def images(count: int = 3, image: tuple[int, int, int] = SMALL.image) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, *image))


# --- variables ---


def block(number: int) -> list[str]:
    where = f"blocks/{number}"
    return [
        *(f"{where}/norm1/{name}" for name in ("gamma", "beta")),
        *(
            f"{where}/attention/{part}/{name}"
            for part in ("query", "key", "value", "out")
            for name in ("kernel", "bias")
        ),
        *(f"{where}/norm2/{name}" for name in ("gamma", "beta")),
        *(f"{where}/mlp/{part}/{name}" for part in ("up", "down") for name in ("kernel", "bias")),
    ]


def test_the_variable_paths_are_exactly_these_in_this_order() -> None:
    assert [entry.path for entry in name_variables(vit())] == [
        "patch/kernel",
        "patch/bias",
        "class_token",
        "position_embedding",
        *block(0),
        *block(1),
        "norm/gamma",
        "norm/beta",
        "head/kernel",
        "head/bias",
    ]


def test_options_add_and_remove_their_variables_alone() -> None:
    plain = {entry.path for entry in name_variables(vit())}
    assert plain - {e.path for e in name_variables(vit(pool="mean"))} == {"class_token"}
    scaled = {entry.path for entry in name_variables(vit(layer_scale=0.1))}
    assert scaled - plain == {f"blocks/{n}/scale{which}" for n in (0, 1) for which in (1, 2)}
    assert {e.path for e in name_variables(vit(dropout=0.1, drop_path=0.1, gelu="tanh"))} == plain


def test_shapes_are_those_of_the_configuration() -> None:
    shapes = {entry.path: tuple(entry.variable.shape) for entry in name_variables(vit())}
    assert shapes["patch/kernel"] == (4 * 4 * 2, 12)
    assert shapes["class_token"] == (1, 1, 12)
    assert shapes["position_embedding"] == (1, 2 * 3 + 1, 12)
    assert shapes["blocks/0/attention/query/kernel"] == (12, 12)
    assert shapes["blocks/1/mlp/up/kernel"] == (12, 48)
    assert shapes["blocks/1/mlp/down/kernel"] == (48, 12)
    assert shapes["head/kernel"] == (12, 5)
    assert SMALL.tokens == 7
    assert vit(pool="mean").position_embedding.shape == (1, 6, 12)


@pytest.mark.parametrize(
    ("size", "depth", "parameters"),
    [("Ti", 12, 5_717_416), ("S", 12, 22_050_664), ("B", 12, 86_567_656), ("L", 24, 304_326_632)],
)
def test_sizes_have_the_published_number_of_parameters(size: str, depth: int, parameters: int) -> None:
    """Blocks are all alike, so two small builds give the count of any depth."""

    def count(blocks: int) -> int:
        model = build_model(f"vit:{size}/16,depth={blocks}", image_shape=(224, 224, 3), outputs=1000)
        return name_variables(model.network).parameters

    one, two = count(1), count(2)
    assert one + (depth - 1) * (two - one) == parameters


def test_a_whole_model_of_a_size_has_its_parameters() -> None:
    model = build_model("vit:Ti/16", image_shape=(224, 224, 3), outputs=1000)
    assert name_variables(model.network).parameters == 5_717_416


def test_the_seed_decides_the_initial_weights() -> None:
    one, same, other = (ViT(SMALL, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(name_variables(one), name_variables(same), strict=True):
        np.testing.assert_array_equal(a.variable, b.variable)
    assert (one.patch.kernel.numpy() != other.patch.kernel.numpy()).any()


def test_initial_weights_are_within_their_bounds() -> None:
    network = ViT(SMALL)
    limit = math.sqrt(6 / (12 + 48))
    assert 0.8 * limit < np.abs(network.blocks[0].mlp.up.kernel.numpy()).max() <= limit
    assert np.abs(network.position_embedding.numpy()).max() <= np.float32(2 * 0.02)
    assert not network.class_token.numpy().any()
    assert (network.norm.gamma.numpy() == 1).all()
    scaled = ViT(dataclasses.replace(SMALL, layer_scale=1e-5))
    assert (scaled.blocks[1].scale2.numpy() == np.float32(1e-5)).all()


# --- the forward pass ---


def norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * gamma + beta


def gelu(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(network: ViT, batch: np.ndarray) -> np.ndarray:
    """The paper's formulas, one image, one head and one patch at a time."""
    config = network.config
    w = {entry.path: entry.variable.numpy() for entry in name_variables(network)}

    def dense(x: np.ndarray, path: str) -> np.ndarray:
        return x @ w[f"{path}/kernel"] + w[f"{path}/bias"]

    logits = []
    for image in batch:
        rows, columns = config.image[0] // config.patch, config.image[1] // config.patch
        size = config.patch
        patches = [
            image[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)
            for r in range(rows)
            for c in range(columns)
        ]
        x = dense(np.stack(patches), "patch")
        if config.pool == "token":
            x = np.concatenate([w["class_token"][0], x])
        x = x + w["position_embedding"][0]
        for n in range(config.depth):
            where = f"blocks/{n}"
            y = norm(x, w[f"{where}/norm1/gamma"], w[f"{where}/norm1/beta"])
            query, key, value = (dense(y, f"{where}/attention/{part}") for part in ("query", "key", "value"))
            heads = []
            for part in np.split(np.arange(config.width), config.heads):
                scores = query[:, part] @ key[:, part].T / math.sqrt(len(part))
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
            x = x + dense(np.concatenate(heads, -1), f"{where}/attention/out") * w.get(f"{where}/scale1", 1.0)
            y = norm(x, w[f"{where}/norm2/gamma"], w[f"{where}/norm2/beta"])
            y = dense(gelu(dense(y, f"{where}/mlp/up"), config.gelu), f"{where}/mlp/down")
            x = x + y * w.get(f"{where}/scale2", 1.0)
        x = norm(x, w["norm/gamma"], w["norm/beta"])
        logits.append(dense(x[0] if config.pool == "token" else x.mean(0), "head"))
    return np.stack(logits)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "mean"}, {"gelu": "tanh"}, {"layer_scale": 0.3}, {"depth": 1, "heads": 1, "patch": 2}],
    ids=str,
)
def test_the_forward_pass_equals_numpy(changes: dict[str, Any]) -> None:
    network = vit(**changes)
    # float64 on both sides: logits of order 10 after some hundred operations each
    np.testing.assert_allclose(network(images()), reference(network, images()), atol=1e-11, rtol=0)


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_and_its_gradient_equal_tensorflows_own(approximate: bool) -> None:
    x = tf.constant(np.linspace(-9, 9, 10_001), tf.float64)
    ours, slope = value_and_slope(lambda x: layers.gelu(x, approximate=approximate), x)
    theirs, their_slope = value_and_slope(lambda x: tf.nn.gelu(x, approximate=approximate), x)
    # tf.nn.gelu rounds its constants to float32 (6e-8) in float64 too; values of up to 9
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    np.testing.assert_allclose(slope, their_slope, atol=1e-6, rtol=0)
    in_float32 = layers.gelu(tf.cast(x, tf.float32), approximate=approximate)
    np.testing.assert_allclose(in_float32, ours, atol=2e-6, rtol=0)  # 2 units in the last place of 9


@pytest.mark.parametrize("approximate", [False, True])
def test_the_gradients_written_by_hand_are_those_of_the_values(approximate: bool) -> None:
    rng = np.random.default_rng(0)
    norm = layers.LayerNorm(6, dtype=tf.float64)
    norm.gamma.assign(rng.standard_normal(6))
    weights = rng.standard_normal((3, 6))

    def loss(x: Any) -> Any:
        return tf.reduce_sum(weights * layers.gelu(norm(x), approximate=approximate))

    x = tf.constant(rng.standard_normal((3, 6)))
    _, slope = value_and_slope(loss, x)
    for place in np.ndindex(3, 6):
        nudge = np.zeros((3, 6))
        nudge[place] = 1e-6
        # central differences: 1e-12 of truncation, 1e-10 of rounding
        np.testing.assert_allclose((loss(x + nudge) - loss(x - nudge)) / 2e-6, slope[place], atol=1e-8, rtol=0)


@pytest.mark.parametrize("queries", [1, 4])
def test_attention_and_its_gradient_equal_the_formula(queries: int) -> None:
    rng = np.random.default_rng(0)
    given = [tf.constant(rng.standard_normal((2, 3, n, 5))) for n in (queries, 4, 4)]
    upstream = tf.constant(rng.standard_normal((2, queries, 3, 5)))

    def plain(query: Any, key: Any, value: Any) -> Any:
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        return tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])

    found = {}
    for name, function in (("ours", layers.attend), ("plain", plain)):
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = function(*given)
        found[name] = [y, *tape.gradient(y, given, output_gradients=upstream)]
    for ours, theirs in zip(found["ours"], found["plain"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    "changes", [{}, {"fc_norm": True}, {"dropout": 0.4, "drop_path": 0.4, "layer_scale": 0.3}], ids=str
)
def test_the_logits_are_those_of_the_first_token_of_the_features(changes: dict[str, Any]) -> None:
    """The last block computes only the first token; its loss, its gradient and its random draws are the same."""
    network = vit(**changes)
    seeds = tf.constant([[1, 2], [3, 4], [5, 6]])
    variables = [entry.variable for entry in name_variables(network)]

    def logits(first_only: bool) -> Any:
        if first_only:
            return network(images(), training=True, seeds=seeds)
        x = network.features(images(), training=True, seeds=seeds)[:, 0]
        return network.head(x if network.fc_norm is None else network.fc_norm(x))

    found = []
    for first_only in (True, False):
        with tf.GradientTape() as tape:
            y = logits(first_only)
            loss = tf.reduce_sum(tf.square(y))
        found.append([y, *tape.gradient(loss, variables)])
    for short, long in zip(*found, strict=True):
        np.testing.assert_allclose(short, long, atol=1e-12, rtol=0)


def test_the_last_block_computes_one_query_and_one_row_of_its_mlp() -> None:
    spec = tf.TensorSpec([None, *SMALL.image], tf.float64)
    shapes = []
    for depth in (1, 2):
        traced = tf.function(vit(depth=depth), autograph=False).get_concrete_function(spec)
        shapes.append(
            [op.outputs[0].shape[1:].as_list() for op in traced.graph.get_operations() if op.type == "BatchMatMulV2"]
        )
    assert shapes[0] == [[3, 1, 7], [3, 1, 4]]
    assert shapes[1] == [[3, 7, 7], [3, 7, 4], *shapes[0]]


def test_bias_and_product_can_be_fused_in_float32_alone() -> None:
    """TensorFlow fuses a MatMul with a BiasAdd that reads it; in 16 bits the fused kernels are slow."""
    dense = layers.Dense(4, 6, rng=np.random.default_rng(0))
    readers = {}
    for dtype in (tf.float32, tf.bfloat16, tf.float16):
        graph = tf.function(dense, autograph=False).get_concrete_function(tf.TensorSpec([None, 3, 4], dtype)).graph
        (product,) = (op for op in graph.get_operations() if op.type == "MatMul")
        readers[dtype] = [reader.type for reader in product.outputs[0].consumers()]
    assert readers == {tf.float32: ["BiasAdd"], tf.bfloat16: ["Reshape"], tf.float16: ["Cast"]}


@pytest.mark.parametrize(("compute", "bound"), [(tf.float32, 2e-6), (tf.bfloat16, 4e-2), (tf.float16, 5e-3)], ids=str)
def test_every_compute_dtype_is_near_float64(compute: Any, bound: float) -> None:
    """The logits and the gradient of all variables; relative, over all of them together."""
    exact, network = ViT(SMALL, dtype=tf.float64), ViT(SMALL, compute=compute)

    def run(network: ViT) -> tuple[np.ndarray, np.ndarray]:
        variables = [entry.variable for entry in name_variables(network)]
        with tf.GradientTape() as tape:
            y = network(images())
            loss = tf.reduce_mean(tf.square(y))
        gradients = [np.ravel(g) for g in tape.gradient(loss, variables)]
        return y.numpy().astype(np.float64), np.concatenate(gradients).astype(np.float64)

    for ours, best in zip(run(network), run(exact), strict=True):
        assert np.linalg.norm(ours - best) < bound * np.linalg.norm(best)


def value_and_slope(function: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y.numpy(), tape.gradient(y, x).numpy()


def test_each_option_of_the_forward_pass_matters() -> None:
    """Above, a wrong formula differs by more than the bound: the options' results are far apart."""
    plain = vit()(images()).numpy()
    for changes in ({"gelu": "tanh"}, {"layer_scale": 0.3}):
        assert np.abs(vit(**changes)(images()).numpy() - plain).max() > 1e-5


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_outputs_and_features_have_their_shapes(pool: str) -> None:
    network = vit(pool=pool)
    assert network(images(4)).shape == (4, 5)
    assert network.features(images(4)).shape == (4, 7 if pool == "token" else 6, 12)
    assert network(images(1)).shape == (1, 5)


def test_a_compiled_pass_takes_any_number_of_images() -> None:
    network = vit()
    traced = tf.function(network, autograph=False).get_concrete_function(
        tf.TensorSpec([None, *SMALL.image], tf.float64)
    )
    for count in (1, 3):
        np.testing.assert_allclose(traced(tf.constant(images(count))), network(images(count)), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 2, 8, 12), "[3, 2, 8, 12]; expected [None, 8, 12, 2] (height, width, channels); channels come last"),
        pytest.param((3, 12, 8, 2), "[3, 12, 8, 2]; expected [None, 8, 12, 2]", marks=pytest.mark.slow),
        pytest.param((6, 8, 12, 1), "[6, 8, 12, 1]; expected [None, 8, 12, 2]", marks=pytest.mark.slow),
        ((8, 12, 2), "[8, 12, 2]; expected [None, 8, 12, 2]"),
    ],
)
def test_images_of_another_shape_are_refused_also_while_tracing(shape: tuple[int, ...], said: str) -> None:
    network = vit()
    with pytest.raises(InputError, match=re.escape(said)):
        network(np.zeros(shape))
    compiled = tf.function(network, autograph=False)  # autograph would wrap the error
    with pytest.raises(InputError, match=re.escape(said)):
        compiled.get_concrete_function(tf.TensorSpec(shape, tf.float64))
    # what is not known while tracing is not refused
    assert compiled(tf.ensure_shape(images(2), [2, 8, 12, 2])).shape == (2, 5)
    unknown = tf.function(network, autograph=False, input_signature=[tf.TensorSpec([None, None, None, 2], tf.float64)])
    np.testing.assert_array_equal(unknown(images(2)), compiled(images(2)))


def test_an_image_does_not_feel_the_others_in_its_batch() -> None:
    network = vit()
    whole = network(images(4)).numpy()
    for n in range(4):
        np.testing.assert_allclose(network(images(4)[n : n + 1])[0], whole[n], atol=1e-12, rtol=0)


# --- dropout and drop path ---

RANDOM = {"dropout": 0.3, "drop_path": 0.5}


def test_dropout_and_drop_path_do_nothing_in_inference() -> None:
    np.testing.assert_array_equal(vit(**RANDOM)(images()), vit()(images()))
    seeds = example_seeds(0, 0, np.arange(3))
    np.testing.assert_array_equal(vit(**RANDOM)(images(), training=False, seeds=seeds), vit()(images()))


def test_training_without_dropout_needs_no_seeds_and_changes_nothing() -> None:
    np.testing.assert_array_equal(vit()(images(), training=True), vit()(images()))


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_training_with_randomness_needs_seeds(option: str) -> None:
    with pytest.raises(ValueError, match="seeds=None"):
        vit(**{option: 0.5})(images(), training=True)


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_training_draws_from_the_examples_seeds_alone(option: str) -> None:
    network = vit(**{option: 0.5})
    batch = np.repeat(images(1), 8, axis=0)
    seeds = example_seeds(0, 0, np.arange(8))
    outputs = network(batch, training=True, seeds=seeds).numpy()
    np.testing.assert_array_equal(network(batch, training=True, seeds=seeds), outputs)
    assert len({row.tobytes() for row in outputs}) >= 3  # drop path has two branches to drop or keep: four results
    assert (outputs != network(batch, training=True, seeds=example_seeds(0, 1, np.arange(8))).numpy()).any()


def test_training_does_not_depend_on_how_the_batch_is_split() -> None:
    network = vit(**RANDOM)
    batch, seeds = images(6), example_seeds(4, 2, np.arange(6))
    whole = network(batch, training=True, seeds=seeds).numpy()
    parts = [network(batch[i:j], training=True, seeds=seeds[i:j]) for i, j in ((0, 1), (1, 4), (4, 6))]
    # float64: a product of matrices of another height may be summed in another order, nothing more
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-12, rtol=0)


def test_drop_path_rises_from_nothing_to_its_rate() -> None:
    network = ViT(dataclasses.replace(SMALL, depth=5, drop_path=0.4))
    assert [b.drop_path_rate for b in network.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], rel=1e-15)


def test_drop_path_drops_whole_branches_at_its_rate_and_keeps_the_mean() -> None:
    count, rate = 4000, 0.25
    x = tf.ones([count, 3, 2], tf.float64)
    found = layers.drop_path(x, rate, seeds=example_seeds(0, 0, np.arange(count)), site=2).numpy()
    rows = found.reshape(count, -1)
    assert (rows == rows[:, :1]).all()
    assert set(rows[:, 0]) == {0.0, 1 / 0.75}
    assert abs((rows[:, 0] == 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / count)


def test_dropout_drops_elements_at_its_rate_and_keeps_the_mean() -> None:
    count, rate = 500, 0.1
    x = tf.ones([count, 10, 4], tf.float64)
    found = layers.dropout(x, rate, seeds=example_seeds(0, 0, np.arange(count)), site=2).numpy()
    assert set(found.ravel()) == {0.0, 1 / 0.9}
    assert abs((found == 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / found.size)
    assert len({row.tobytes() for row in found}) > 0.9 * count
