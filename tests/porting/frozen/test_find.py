"""Which constants of a frozen graph are weights is found with and without the names that freezing left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import frozen_graphs
import numpy as np
import pytest
import tensorflow as tf
from frozen_graphs import FrozenGraph, anonymise, freeze, get

from engine.errors import FileError, InputError
from engine.porting.frozen.find import FrozenWeights, find_weights

v1 = tf.compat.v1
X = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)


def find(made: FrozenGraph | Any, **arguments: Any) -> FrozenWeights:
    return find_weights(getattr(made, "definition", made), where="model.pb", **arguments)


def kinds(found: FrozenWeights) -> dict[str, str]:
    return {weight.name: weight.kind for weight in found.weights}


def expected(made: FrozenGraph) -> dict[str, str]:
    return {name: "statistic" if "moving" in name else "weight" for name in made.values}


MADE: dict[str, Callable[[], FrozenGraph]] = {
    "batch normalisation in single operations": lambda: frozen_graphs.convolutional(fused=False),
    "fused batch normalisation": lambda: frozen_graphs.convolutional(fused=True),
    "a loop of TensorFlow 1": frozen_graphs.recurrent,
    "a loop of functions": lambda: frozen_graphs.recurrent(old=False),
    "a branch of TensorFlow 1": frozen_graphs.branching,
    "a branch of functions": lambda: frozen_graphs.branching(old=False),
    "attention": frozen_graphs.attention,
}


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest) -> FrozenGraph:
    return MADE[request.param]()


def test_every_variable_of_a_frozen_network_is_found_and_nothing_else(made: FrozenGraph) -> None:
    found = find(made)
    assert kinds(found) == expected(made)
    for name, value in made.values.items():
        np.testing.assert_array_equal(found.read(name), value)


def test_the_same_is_found_without_names_and_identities(made: FrozenGraph) -> None:
    definition, names = anonymise(made.definition)
    found = find(definition)
    unclear = {each.name for each in found.unclear}
    missed = {name for name in made.values if names.get(name, name) not in kinds(found)}
    assert missed <= {"bert/position_embeddings"}  # it could be fixed by design
    assert {names[name] for name in missed} <= unclear
    assert kinds(found) == {names.get(name, name): kind for name, kind in expected(made).items() if name not in missed}


def dense(build: Callable[[Any], Any]) -> Any:
    """A network of one layer, with something made of its output."""

    def whole() -> dict[str, Any]:
        x = tf.matmul(
            v1.placeholder(tf.float32, [None, 4], "x"), tf.constant(np.ones((4, 6), np.float32) * 0.3, name="kernel")
        )
        return {"y": build(x)}

    return freeze(whole, {"x:0": X})


def constant(*shape: int, name: str = "c") -> Any:
    return tf.constant(np.random.default_rng(4).standard_normal(shape).astype(np.float32), name=name)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: tf.reshape(x, [-1, 3, 2]) * constant(3, 2), "multiplies by it, with a tensor of 2 channels"),
        (lambda x: x + constant(2, 6), "adds it to a tensor of 6 channels"),
        (lambda x: tf.reshape(x, [-1]) * tf.sqrt(tf.exp(constant(24))), "multiplies by it, with a tensor of unknown channels"),
        (lambda x: tf.reshape(tf.matmul(x, constant(6, 8, name="boxes")), [-1, 4]) * constant(4), "with a tensor of 4 channels"),
        (lambda x: tf.maximum(x, constant(6)), "read by Maximum"),
        (lambda x: tf.gather(constant(6, 3), tf.argmax(x, 1)), "what the network has chosen"),
        (lambda x: tf.matmul(x, constant(6, 3) * tf.constant([[1.0, 0, 1]] * 6, name="mask")), "as a mask does"),
        (lambda x: tf.concat([x, tf.tile(constant(1, 2), [tf.shape(x)[0], 1])], 1), "read by ConcatV2"),
        (lambda x: tf.matmul(tf.reshape(x, tf.cast(constant(2) * 0 + [-1.0, 6.0], tf.int32)) * constant(6), constant(6, 6, name="d")), None),
    ],
)  # fmt: skip
def test_what_nothing_shows_to_be_a_weight_is_unclear_and_can_be_chosen(build: Any, reason: str | None) -> None:
    made = dense(build)
    found = find(made)
    if reason is None:  # a shape that is computed from floating-point numbers
        assert "c" not in kinds(found)
        return
    assert [each.name for each in found.unclear] in (["c"], ["mask"])
    assert reason in found.unclear[0].reason
    name = found.unclear[0].name
    chosen = find(made, chosen=name)
    assert not chosen.unclear
    assert [each.rule for each in chosen.weights if each.name == name] == [f"chosen by `{name}`"]


def test_a_constant_that_is_a_weight_and_a_shape_is_unclear() -> None:
    def build(x: Any) -> Any:
        both = tf.constant([2.0, 3, 1, 1, 1, 1], name="both")
        return tf.reshape(x * both, tf.cast(tf.concat([[-1.0], both[:2]], 0), tf.int32))

    found = find(dense(build))
    assert [each.name for each in found.unclear] == ["both"]
    assert "also as a shape, an index or a condition (Cast" in found.unclear[0].reason


def test_shapes_limits_and_single_numbers_stay_constants() -> None:
    found = find(dense(lambda x: tf.minimum(tf.nn.relu(x * 0.5 + 3.0), 6.0) + tf.zeros([6])))
    assert kinds(found) == {"kernel": "weight", "zeros": "weight"}
    assert set(found.others.values()) <= {
        "a single number (Mul mul)",
        "a single number (AddV2 add)",
        "a single number (Minimum Minimum)",
    }


def test_single_numbers_that_were_variables_are_weights() -> None:
    found = find(dense(lambda x: tf.nn.relu(x) * get("temperature", [])))
    assert kinds(found) == {"kernel": "weight", "temperature": "weight"}


def test_what_normalises_the_input_stays_constant_and_is_told() -> None:
    made = frozen_graphs.convolutional(fused=True)
    found = find(made)
    assert found.others["mean"] == "it normalises the input (Sub sub)"
    assert any("normalises the input stays constant: mean, deviation" in note for note in found.notes)
    assert "mean" in kinds(find(made, chosen="mean"))


def test_mel_filters_are_unclear() -> None:
    def build() -> dict[str, Any]:
        sound = v1.placeholder(tf.float32, [2, 16], "sound")
        power = tf.abs(tf.signal.rfft(sound * constant(16, name="window")))
        return {"y": tf.matmul(tf.matmul(power, constant(9, 5, name="mel")), constant(5, 3, name="kernel"))}

    found = find(freeze(build, {}))
    assert kinds(found) == {"kernel": "weight"}
    assert {each.name for each in found.unclear} == {"window", "mel"}


def test_items_choose_and_leave_out_and_the_last_one_decides() -> None:
    made = frozen_graphs.convolutional(fused=True)
    assert set(kinds(find(made, chosen="!conv0/.* conv0/gamma"))) == {n for n in made.values if "conv0" not in n} | {
        "conv0/gamma"
    }
    assert kinds(find(made, chosen="!.* .*")) == kinds(find(made))
    with pytest.raises(
        InputError, match=r"`conv0/gama`: no floating-point constant has such a name; nearest: conv0/gamma"
    ):
        find(made, chosen="conv0/gama")


def test_outputs_limit_what_is_found() -> None:
    made = frozen_graphs.convolutional(fused=True)
    found = find(made, outputs=["conv0/Relu:0"]) if any(n.name == "conv0/Relu" for n in made.definition.node) else None
    assert found is not None
    assert set(kinds(found)) == {name for name in made.values if name.startswith("conv0") and "alphas" not in name}


def test_outputs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match=r"outputs=logit: the graph has no such operation; nearest: logits"):
        find(frozen_graphs.convolutional(fused=True), outputs=["logit:0"])


def test_a_weight_inside_a_function_is_unclear_and_cannot_be_chosen() -> None:
    def build(x: Any) -> Any:
        return tf.function(lambda y: tf.matmul(y, constant(6, 3, name="inner")))(x)

    found = find(dense(build))
    assert kinds(found) == {"kernel": "weight"}
    (unclear,) = found.unclear
    assert unclear.name.endswith(":inner")
    assert "kernel (MatMul" in unclear.reason
    assert "inside a function of the graph" in unclear.reason
    with pytest.raises(InputError, match="inside a function of the graph, where it stays a constant"):
        find(dense(build), chosen=".*inner")


def test_notes_tell_of_shared_and_of_equal_weights() -> None:
    def build(x: Any) -> Any:
        big = np.random.default_rng(5).standard_normal((6, 200)).astype(np.float32)
        one, other = tf.constant(big, name="one"), tf.constant(big, name="other")
        return tf.matmul(tf.nn.relu(tf.matmul(x, one)), tf.transpose(other)) + tf.reduce_sum(tf.matmul(x, one))

    notes = "\n".join(find(dense(build)).notes)
    assert "1 weights are read in several places, and each is one variable: one" in notes
    assert "1 pairs of weights have equal values, such as one and other" in notes


def test_a_note_tells_where_batch_normalisation_may_be_folded() -> None:
    def build() -> dict[str, Any]:
        x = v1.placeholder(tf.float32, [2, 4, 4, 1], "x")
        return {
            "y": tf.nn.bias_add(
                tf.nn.conv2d(x, constant(3, 3, 1, 2, name="Conv_weights"), 1, "SAME"),
                constant(2, name="Conv_bn_offset"),
            )
        }

    found = find(freeze(build, {}))
    assert kinds(found) == {"Conv_weights": "weight", "Conv_bn_offset": "weight"}
    assert any("no batch normalisation is left in the graph" in note for note in found.notes)
    assert not find(frozen_graphs.convolutional(fused=False)).notes[0].startswith("no batch")


def test_a_constant_read_as_a_weight_and_as_a_statistic_is_unclear() -> None:
    def build(x: Any) -> Any:
        zeros = tf.constant([0.1] * 6, name="both")
        x = tf.reshape(x, [-1, 1, 1, 6])
        return v1.nn.fused_batch_norm(
            x, constant(6), zeros, zeros, tf.constant([2.0] * 6, name="v"), is_training=False
        )[0]

    found = find(dense(build))
    assert [each.name for each in found.unclear] == ["both"]
    assert "both as a weight and as a statistic" in found.unclear[0].reason


def test_a_graph_that_computes_with_integers_is_refused_in_words() -> None:
    definition = v1.GraphDef()
    definition.node.add(name="x", op="Placeholder").attr["dtype"].type = tf.quint8.as_datatype_enum
    node = definition.node.add(name="conv", op="QuantizedConv2D", input=["x"] * 6)
    for name, kind in (("Tinput", tf.quint8), ("Tfilter", tf.quint8), ("out_type", tf.qint32)):
        node.attr[name].type = kind.as_datatype_enum
    with pytest.raises(InputError, match=r"computes with quantised integers \(QuantizedConv2D conv"):
        find(definition)


def test_a_damaged_constant_is_named() -> None:
    made = dense(lambda x: x)
    node = next(node for node in made.definition.node if node.name == "kernel")
    node.attr["value"].tensor.tensor_content = b"123"
    with pytest.raises(FileError, match=r"model\.pb: kernel: a constant of shape"):
        find(made)


def test_operations_that_this_tensorflow_does_not_know_do_not_matter() -> None:
    made = dense(lambda x: x)
    made.definition.node.add(name="custom", op="Unknown_PostProcess", input=["y", "kernel"])
    assert kinds(find(made)) == {"kernel": "weight"}
