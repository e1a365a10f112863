"""Compiled pieces: the values of TensorFlow's operations, one function for all, and none where they do not belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine
from engine.graphs.tracing import find_calls, inlined, is_piece
from engine.memory.buffers import Buffers
from engine.models import build_model, layers
from engine.training import losses, optimizers, pieces
from engine.training.evaluation import Evaluator

GRADIENT, CACHED = 5e-6, 1e-6  # as E2 and E4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pieces pay for the tensors of tiny models."""
    monkeypatch.setattr(pieces, "_LEAST", 16)


def batch(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**31, (size, 2)).astype(np.int32)
    image = rng.standard_normal((size, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 4, size), "seeds": seeds}


def make(text: str = "@blocks[-1:] @head", **settings: Any) -> tuple[TrainStep, Any, Any]:
    """A step, a selection and the network; the last block computes all tokens, because their mean is taken."""
    network = build_model("vit:mini,depth=2,pool=mean", image_shape=(8, 8, 1), outputs=4, dtype=tf.float32).network
    return (
        TrainStep(losses.supervised_loss(network), optimizers.Momentum(), **settings),
        select(network, text),
        network,
    )


def first_gradient(size: int = 5, *, text: str = "@blocks[-1:] @head", cut: bool = False, **settings: Any) -> Any:
    step, selection, _ = make(text, **settings)
    given = batch(size)
    if cut:
        line = cut_step(step, selection, given)
        assert isinstance(line, FrostLine)
        (found,) = [f for f in step._traces.of(selection) if getattr(f, "function", None) is line.suffix.function]
        assert count_pieces(found.graph)  # those of the trained part are still compiled
        given = line.replace_images(given)
    step(selection, given, learning_rate=0.1)
    return np.concatenate([step.slots.values[entry.path]["momentum"].numpy().ravel() for entry in selection.trained])


def count_pieces(graph: Any) -> int:
    return sum(is_piece(op) for op in graph.get_operations())


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def with_gradient(function: Any, x: Any, upstream: Any) -> list[Any]:
    """The value and the gradient, each in float64."""

    @tf.function(autograph=False)
    def run(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, upstream)

    return [value.numpy().astype(np.float64) for value in run(x, upstream)]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.usefixtures("small")
def test_a_compiled_gelu_is_as_exact_as_its_dtype_allows(approximate: bool) -> None:
    x = tf.constant(np.linspace(-9, 9, 1000).reshape(5, 200), tf.float64)
    upstream = tf.constant(np.random.default_rng(0).standard_normal((5, 200)), tf.bfloat16)  # exact in all three

    def gelu(x: Any) -> Any:
        return layers.gelu(x, approximate=approximate)

    # float32: the derivative with tanh cancels, to 8e-7 with TensorFlow's operations too; bfloat16: theirs reach 3.3e-3
    for dtype, bound in ((tf.float32, 1e-6), (tf.bfloat16, 1.5e-3)):
        given, incoming = tf.cast(x, dtype), tf.cast(upstream, dtype)
        expected = with_gradient(gelu, tf.cast(given, tf.float64), tf.cast(upstream, tf.float64))
        with pieces.scope(True):
            found = with_gradient(gelu, given, incoming)
        for ours, exact in zip(found, expected, strict=True):
            assert relative(ours, exact) < bound


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.usefixtures("small")
def test_the_compiled_gradient_of_attention_has_the_same_bits(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    given = tf.constant(rng.standard_normal((3, 3, 2, 9, 4)), dtype)  # query, key and value [3, 2, 9, 4]
    upstream = tf.constant(rng.standard_normal((3, 9, 2, 4)), dtype)

    def attend(given: Any) -> Any:
        return layers.attend(*tf.unstack(given))

    plain = with_gradient(attend, given, upstream)
    with pieces.scope(True):
        compiled = with_gradient(attend, given, upstream)
    for ours, theirs in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_result_of_an_example_does_not_depend_on_how_many_there_are() -> None:
    piece = pieces.Piece(lambda x: layers._gelu_erf(x)[0])
    x = tf.constant(np.random.default_rng(0).standard_normal((9, 77)), tf.float32)
    whole = piece(x).numpy()
    assert whole.shape == (9, 77)
    for first, last in ((0, 1), (2, 9), (0, 8)):
        np.testing.assert_array_equal(piece(x[first:last]), whole[first:last])


def test_few_numbers_of_examples_are_compiled_and_each_is_at_most_a_quarter_too_large() -> None:
    sizes = [pieces.pad(count) for count in range(1, 4097)]
    assert all(count <= size <= 1.25 * count for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 44  # 4 in each doubling
    assert [pieces.pad(count) for count in (1, 7, 8, 16, 24, 32, 64, 96, 128)] == [1, 7, 8, 16, 24, 32, 64, 96, 128]


@pytest.mark.usefixtures("small", "deterministic_ops")
def test_a_step_with_pieces_in_parts_or_cached_is_the_step_without(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = first_gradient(micro_batch_size=3, remat="blocks")
    cached = first_gradient(cut=True)
    monkeypatch.setattr(pieces, "_LEAST", 2**60)
    plain = first_gradient()
    assert 0 < relative(parts, plain) < GRADIENT
    assert 0 < relative(cached, plain) < GRADIENT


@pytest.mark.slow
@pytest.mark.parametrize("text", ["@all", "@blocks[:1] @head", "@blocks[-1:] @head"])
@pytest.mark.usefixtures("small", "deterministic_ops")
def test_steps_with_pieces_are_equal_in_every_mode(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = first_gradient(text=text)
    settings: list[dict[str, Any]] = [{"micro_batch_size": size} for size in (1, 2, 3)]
    settings += [{"remat": "elementwise"}, {"remat": "blocks"}]
    for each in settings:
        assert relative(first_gradient(text=text, **each), whole) < GRADIENT, each
    if text == "@blocks[-1:] @head":
        assert relative(first_gradient(text=text, cut=True), whole) < CACHED
    monkeypatch.setattr(pieces, "_LEAST", 2**60)
    assert 0 < relative(first_gradient(text=text), whole) < GRADIENT


@pytest.mark.usefixtures("small")
def test_pieces_are_above_the_lowest_trained_variable_alone_and_compiled() -> None:
    step, selection, network = make()
    micro = step.micro_batch(selection, batch(5))
    assert count_pieces(micro.graph) == 3  # of one block: GELU, its gradient, and that of softmax
    assert find_calls(micro.graph.get_operations()) == []  # nothing that the frost line could not look into
    functions = {f.signature.name: f for f in micro.graph.as_graph_def().library.function}
    assert sum(function.attr["_XlaMustCompile"].b for function in functions.values()) == 3
    head = step.micro_batch(select(network, "@head"), batch(5))
    assert count_pieces(head.graph) == 0
    assert count_pieces(Evaluator(step.loss_fn).traced(selection, batch(5)).function.graph) == 0
    exported = tf.function(lambda x: network(x), autograph=False)
    assert count_pieces(exported.get_concrete_function(tf.TensorSpec([None, 8, 8, 1])).graph) == 0


@pytest.mark.usefixtures("small")
def test_blocks_and_traces_share_their_functions_and_other_batches_trace_nothing() -> None:
    step, selection, network = make("@all")
    graphs = [step.micro_batch(each, batch(5)).graph for each in (selection, select(network, "@blocks[-1:] @head"))]
    assert [count_pieces(graph) for graph in graphs] == [6, 3]
    assert len({op.get_attr("f").name for graph in graphs for op in graph.get_operations() if is_piece(op)}) == 3
    for size in (5, 7):
        step(selection, batch(size), learning_rate=0.1)
    assert step.traces == 1


def test_a_piece_that_is_first_met_while_calls_are_inlined_is_compiled_too() -> None:
    piece = pieces.Piece(lambda x: x + 1.0)
    with inlined():
        graph = tf.function(piece, autograph=False).get_concrete_function(tf.TensorSpec([None, 3])).graph
        traced = tf.Graph()
        with traced.as_default():
            piece(tf.compat.v1.placeholder(tf.float32, [None, 3]))
    del graph
    assert count_pieces(traced) == 1
    assert any(f.attr["_XlaMustCompile"].b for f in traced.as_graph_def().library.function)


@pytest.mark.usefixtures("small")
def test_a_step_that_xla_compiles_whole_has_no_pieces() -> None:
    step, selection, _ = make(jit_compile="on")
    assert count_pieces(step.micro_batch(selection, batch(4)).graph) == 0


@pytest.mark.usefixtures("small")
def test_the_forecast_counts_the_results_of_pieces_and_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks() -> list[int]:
        step, selection, _ = make()
        micro = step.micro_batch(selection, batch(4))
        buffers = Buffers(micro.graph, list(micro.inputs.values()), micro.graph.outputs, kept=True)
        return [buffers.find_peak(count) for count in (1024, 1025)]

    exact, padded = peaks()
    monkeypatch.setattr(pieces, "_LEAST", 2**60)
    plain, _ = peaks()
    # TensorFlow's gelu keeps its derivative where the piece keeps its argument, and computes with one tensor more
    assert 0.85 * plain < exact <= plain
    assert 1.1 * exact < padded < 1.6 * exact  # both arguments of the gradient of GELU, at 1280 examples
