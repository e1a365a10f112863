"""Where the frost line lies, and where it may not: small models, each with one obstacle."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, select
from engine.frostline import line
from engine.frostline.cuts import cut_evaluation, cut_micro_batch, cut_step
from engine.frostline.line import FrostLine, Refused
from engine.training import losses, optimizers
from engine.training.evaluation import Evaluator
from engine.training.losses import Loss

ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


class Model(tf.Module):
    """body -> what a test puts between -> head. Images [B, 6]; the body makes 5 of them, the head 3."""

    def __init__(self, between: Callable[[Any, Any], Any] = lambda x, seeds: x) -> None:
        super().__init__()
        self.body = tf.Variable(RNG.standard_normal((6, 5)).astype(np.float32), name="body")
        self.head = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32), name="head")
        self.count = tf.Variable(0.0, trainable=False, name="count")
        self.between = between

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        return tf.matmul(self.between(tf.matmul(images, self.body), seeds), self.head)


def batch(count: int = 4) -> dict[str, Any]:
    images = RNG.standard_normal((count, 6)).astype(np.float32)
    return {"image": images, "label": RNG.integers(0, 3, count)}


def step_of(model: Any, **options: Any) -> TrainStep:
    return TrainStep(losses.supervised_loss(model), optimizers.SGD(), **options)


def cut(model: Any, train: str = "head", *, given: Any = None, **options: Any) -> FrostLine | Refused:
    return cut_step(step_of(model), select(model, train), given or batch(), **options)


def line_of(model: Any, train: str = "head", **options: Any) -> FrostLine:
    """The line of a model, which must have one."""
    found = cut(model, train, **options)
    assert isinstance(found, FrostLine), found
    return found


def check_equal(model: Any, train: str = "head", *, micro: int | None = None) -> FrostLine:
    """Cuts, and compares a step's gradient above the line with the whole one's."""
    selection, given = select(model, train), batch()
    results = []
    for cached in (True, False):
        step = step_of(model, micro_batch_size=micro)
        before = [entry.variable.numpy() for entry in selection.trained]
        line = cut_step(step, selection, given)
        assert isinstance(line, FrostLine), line
        result = step(selection, line.replace_images(given) if cached else given, learning_rate=1.0)
        after = [entry.variable.numpy() for entry in selection.trained]
        results.append((float(result.loss), [b - a for a, b in zip(before, after, strict=True)]))
        for entry, value in zip(selection.trained, before, strict=True):
            entry.variable.assign(value)
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    return line


def refused(model: Any, train: str = "head", **options: Any) -> str:
    found = cut(model, train, **options)
    assert isinstance(found, Refused), found.describe()
    assert found.describe().startswith("no frost line: ")
    return found.describe()


# --- where it lies


def test_it_lies_where_the_lowest_trained_variable_begins() -> None:
    line = check_equal(Model(), micro=3)
    assert [(t.name, t.shape, t.dtype, t.bytes, t.after) for t in line.tensors] == [
        ("MatMul", (5,), tf.float32, 20, "body")
    ]
    assert (line.forward_share, line.step_share) == (30 / 45, 30 / 60)  # products: 30 and 15, and 15 backward
    given = batch(7)
    np.testing.assert_allclose(
        line.prefix(given["image"])[0],
        given["image"] @ line.selection.variables.by_path()["body"].variable.numpy(),
        rtol=1e-5,
    )
    assert set(line.replace_images(given)) == {"label", "frozen0"}
    assert "MatMul [5] float32 (after body): 20 bytes per example" in line.describe()
    assert "66.7% of the forward pass and 50.0% of the step" in line.describe()


def test_the_part_above_captures_no_variable_that_it_does_not_read() -> None:
    model = Model()
    step, selection, given = step_of(model), select(model, "head"), batch()
    line = cut_step(step, selection, given)
    assert isinstance(line, FrostLine)
    result = step.traced(selection, line.replace_images(given))
    assert [result.handles[tensor.op.name] for tensor in result.graph.inputs if tensor.dtype == tf.resource] == ["head"]


def test_it_moves_down_to_where_fewer_bytes_cross_for_little_work() -> None:
    wide = tf.constant(RNG.standard_normal((5, 4000)).astype(np.float32))
    narrow = tf.constant(RNG.standard_normal((4000, 5)).astype(np.float32))
    line = check_equal(Model(lambda x, _: tf.matmul(tf.nn.relu(tf.matmul(x, wide)), narrow)))
    assert [t.shape for t in line.tensors] == [(5,)]
    assert line.forward_share > 0.99  # the narrow tensor, not the wide one


def test_a_cheaper_cut_is_taken_where_a_limit_on_bytes_asks_for_it() -> None:
    class Wide(Model):
        """A narrow tensor, then work that makes a wide one, which is dearer to do again than to keep."""

        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            wide = tf.matmul(deep(tf.matmul(images, self.body)), tf.ones([5, 30]))
            for _ in range(3):
                wide = tf.tanh(tf.matmul(tf.matmul(wide, tf.ones([30, 500])), tf.ones([500, 30])) / 1e4)
            return tf.matmul(wide[:, :5] * self.head[0, 0] + wide[:, 25:], self.head)

    model, given = Wide(), batch() | {"image": RNG.standard_normal((4, 100)).astype(np.float32)}
    model.body = tf.Variable(RNG.standard_normal((100, 5)).astype(np.float32), name="body")
    free = line_of(model, given=given)
    tight = line_of(model, given=given, most_bytes=20)
    assert free.bytes > 20 >= tight.bytes
    assert "bytes per example, but the limit is 3" in refused(model, given=given, most_bytes=3)


def test_several_tensors_cross_where_several_are_read() -> None:
    class Two(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            images = tf.tile(images, [1, 2])
            x, y = tf.matmul(images[:, :6], self.body), tf.matmul(images[:, 6:], self.body * 2.0)
            return tf.matmul(deep(x), self.head) + tf.matmul(deep(tf.sin(y)), self.head) ** 2

    model, given = Two(), batch() | {"image": RNG.standard_normal((4, 6)).astype(np.float64)}
    line = check_equal(model) if given is None else line_of(model)
    assert [t.shape for t in line.tensors] == [(5,), (5,)]
    check_equal(model)


def test_rows_of_the_batch_times_something_cross_by_example() -> None:
    """[B * 5, 2]: row r belongs to example r // 5."""

    def between(x: Any, _: Any) -> Any:
        rows = tf.reshape(tf.stack([x, tf.square(x)], -1), [-1, 2])
        return tf.matmul(rows, tf.constant([[1.0], [2.0]]), name="rows")

    class Flat(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            rows = between(tf.matmul(images, self.body), None) * self.head[0, 0]
            return tf.matmul(tf.reshape(rows, [-1, 5]), self.head)

    line = check_equal(Flat())
    assert [(t.name, t.shape) for t in line.tensors] in ([("rows", (5, 1))], [("MatMul", (5,))])


def test_shapes_of_tensors_below_the_line_are_known_above_it() -> None:
    """The batch size is read from the images themselves: no reason to cache the images."""

    class Asks(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            logits = super().__call__(images)
            count, width = tf.unstack(tf.shape(images))
            half = tf.cast(tf.size(images), tf.float32) / tf.cast(tf.rank(images), tf.float32)
            return logits * tf.cast(width, tf.float32) + half * self.head[0] + tf.zeros([count, 3])

    line = check_equal(Asks(), micro=3)
    assert [t.name for t in line.tensors] == ["MatMul"]


@pytest.mark.parametrize("kind", ["while", "cond", "map"])
def test_control_flow_may_lie_below(kind: str) -> None:
    def between(x: Any, _: Any) -> Any:
        if kind == "while":
            return tf.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, tf.tanh(y) + y), [tf.constant(0), x])[1]
        if kind == "cond":
            return tf.cond(tf.constant(True), lambda: tf.tanh(x), lambda: x)
        return tf.map_fn(tf.tanh, x)

    line = check_equal(Model(between))
    assert [t.shape for t in line.tensors] == [(5,)]
    assert line.forward_share > 0


def test_functions_that_a_model_calls_are_written_out() -> None:
    class Compiled(Model):
        @tf.function(autograph=False)
        def whole(self, images: Any) -> Any:
            return super().__call__(images)

        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            return self.whole(images)

    model = Compiled()
    line = check_equal(model)
    assert [t.after for t in line.tensors] == ["body"]
    assert not tf.config.functions_run_eagerly()
    evaluator, given = Evaluator(losses.supervised_loss(model)), batch()
    assert cut_evaluation(evaluator, line.selection, line, given) is None
    np.testing.assert_allclose(
        evaluator(line.selection, [line.replace_images(given)]).loss, evaluator(line.selection, [given]).loss, rtol=1e-6
    )


def test_a_subclassed_keras_model() -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = keras.layers.Dense(5, name="first"), keras.layers.BatchNormalization(name="norm")
            self.drop, self.last = keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(3, name="last")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.last(self.drop(self.norm(self.first(x), training=training), training=training))

    model = Net()
    model(np.zeros((1, 6), np.float32))
    line = line_of(model, "last/.*")
    assert [t.shape for t in line.tensors] == [(5,)]
    assert [t.after for t in line.tensors] == ["norm/beta"]


# --- what is varying


def words_of(between: Callable[[Any, Any], Any]) -> str:
    """Why the line lies below a thing put between; it lies right below it."""
    line = line_of(Model(between))
    assert [t.name for t in line.tensors] == ["MatMul"]
    assert len(line.notes) == 1, line.notes
    assert line.notes[0] in line.describe()
    return line.notes[0]


SPREAD = tf.constant(RNG.standard_normal((300, 5)).astype(np.float32) / 300.0)


def deep(x: Any) -> Any:
    """Much work, so that the line would not lie below it without a reason."""
    for _ in range(3):
        x = tf.sin(tf.matmul(tf.matmul(x, tf.ones([5, 300])), SPREAD))
    return x


def test_dropout_by_the_examples_seeds_varies() -> None:
    from engine import seeds as example_seeds

    said = words_of(lambda x, seeds: deep(x * example_seeds.uniform(seeds, [5], site=1)))
    assert "draw from the examples' seeds" in said
    assert "after body" in said
    assert "without them" in said


def test_a_stateful_generator_varies() -> None:
    assert "RandomUniform draws its own random numbers" in words_of(lambda x, _: deep(x * tf.random.uniform([5])))
    branch = words_of(lambda x, _: deep(tf.cond(x[0, 0] < 9e9, lambda: x * tf.random.uniform([5]), lambda: x)))
    assert "If draws its own random numbers" in branch


def test_a_generator_behind_a_variable_varies() -> None:
    generator = tf.random.Generator.from_seed(3)
    assert "changes" in words_of(lambda x, _: deep(x * generator.uniform([5])))


def test_a_constant_seed_is_invariant() -> None:
    line = check_equal(Model(lambda x, _: deep(x * tf.random.stateless_uniform([5], [1, 2]))))
    assert line.notes == ()
    assert line.tensors[0].name != "MatMul"


def test_keras_dropout_varies_through_its_seed() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5), keras.layers.Dropout(0.5), keras.layers.Dense(300), keras.layers.Dense(5)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3, name="last")])
    line = line_of(model, "last/.*")
    assert line.tensors[0].after == "dense/bias"
    assert "dropout/seed_generator/0 is a random layer" in line.notes[0]


def test_what_reads_a_variable_that_the_step_writes_varies() -> None:
    class Counts(Model):
        statistics = ("count",)  # it moves with the head

        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            x = tf.matmul(images, self.body)
            y = deep(x + self.count)
            if training:
                self.count.assign_add(1.0)
            return tf.matmul(y, self.head)

    model = Counts()
    step, selection, given = step_of(model), select(model, "head"), batch()
    line = cut_step(step, selection, given)
    assert isinstance(line, FrostLine)
    assert [t.name for t in line.tensors] == ["MatMul"]
    for _ in range(3):
        step(selection, line.replace_images(given), learning_rate=0.1)
    assert float(model.count) == 3.0  # the write is not lost


def test_a_write_in_a_branch_is_seen() -> None:
    class Counts(Model):
        statistics = ("count",)  # it moves with the head

        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            x = tf.matmul(images, self.body)
            y = deep(x + self.count)
            tf.cond(tf.constant(True), lambda: self.count.assign_add(1.0), lambda: self.count + 0.0)
            return tf.matmul(y, self.head)

    model = Counts()
    step, selection, given = step_of(model), select(model, "head"), batch()
    line = cut_step(step, selection, given)
    assert isinstance(line, FrostLine)
    assert [t.name for t in line.tensors] == ["MatMul"]
    step(selection, line.replace_images(given), learning_rate=0.1)
    assert float(model.count) == 1.0


def test_an_assertion_below_the_line_is_made_by_the_prefix_alone() -> None:
    def between(x: Any, _: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(tf.abs(x), 1e3, "planted")]):
            return tf.tanh(x)

    line = check_equal(Model(between))
    assert not [op for op in line.suffix.graph.get_operations() if op.type == "Assert"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="planted"):
        line.prefix(np.full((2, 6), 1e6, np.float32))


def test_labels_below_the_trained_part_vary() -> None:
    model = Model()

    def loss_fn(batch: Any, *, training: bool, seeds: Any) -> Loss:
        x = deep(tf.matmul(batch["image"], model.body) * tf.cast(batch["label"][:, None], tf.float32))
        return Loss({"t": (tf.reduce_sum(tf.matmul(x, model.head), 1), None)})

    line = cut_step(TrainStep(loss_fn, optimizers.SGD()), select(model, "head"), batch())
    assert isinstance(line, FrostLine)
    assert [t.name for t in line.tensors] == ["MatMul"]


# --- what is refused


def test_a_line_at_the_images_is_refused() -> None:
    assert "no frozen tensor between the images and the trained part is cheaper to cache" in refused(Model(), "body")
    assert "body trains" in refused(Model(), "body head")


def normalised(x: Any, _: Any) -> Any:
    mean, variance = tf.nn.moments(x, [0])
    return deep((x - mean) * tf.math.rsqrt(variance + 1e-3))


@pytest.mark.parametrize(
    "between",
    [
        normalised,
        pytest.param(lambda x, _: deep(x - tf.reduce_mean(x, 0, keepdims=True)), marks=pytest.mark.slow),
        pytest.param(lambda x, _: deep(x / tf.cast(tf.shape(x)[0], tf.float32)), marks=pytest.mark.slow),
        lambda x, _: deep(x + tf.random.stateless_uniform(tf.shape(x), [1, 2])),
        pytest.param(lambda x, _: deep(tf.reverse(x, [0])), marks=pytest.mark.slow),
        pytest.param(lambda x, _: deep(tf.concat([x[1:], x[:1]], 0)), marks=pytest.mark.slow),
        lambda x, _: deep(tf.cumsum(x, 0)),
        lambda x, _: deep(tf.nn.softmax(x, 0)),
        pytest.param(lambda x, _: deep(tf.matmul(tf.matmul(x, x, transpose_b=True), x)), marks=pytest.mark.slow),
        lambda x, _: deep(tf.reshape(tf.transpose(x), [-1, 5])),
    ],
    ids=["moments", "mean", "batch size", "noise by place", "reversed", "rolled", "summed up", "softmax over the batch", "gram", "feature-major rows"],
)  # fmt: skip
def test_what_mixes_examples_never_crosses(between: Callable[[Any, Any], Any]) -> None:
    """What lies below it may."""
    line = check_equal(Model(between))
    assert [t.name for t in line.tensors] == ["MatMul"]
    assert line.notes
    assert "depend on the other examples" in line.notes[0]


def test_what_mixes_right_at_the_images_is_refused() -> None:
    class Mixes(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            return super().__call__(images - tf.reduce_mean(images, 0))

    said = refused(Mixes())
    assert "(Mean)" in said
    assert "!@stats" in said


def test_batch_norm_in_training_mode_below_the_line_is_reported() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(3, name="last")]
    )
    assert "bn/moments" in refused(model, "bn/.* last/.*").replace("bn_1/", "bn/")


def test_images_without_a_fixed_shape_are_refused() -> None:
    class Open(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            return super().__call__(tf.reshape(images, [-1, 6]))

    model = Open()
    selection = select(model, "head")
    specs = {
        "image": tf.TensorSpec([None, None, 3], tf.float32, "image"),
        "label": tf.TensorSpec([None], tf.int64, "label"),
        "seeds": tf.TensorSpec([None, 2], tf.int32, "seeds"),
    }
    from engine.training import microbatch

    micro = microbatch.trace_micro_batch(losses.supervised_loss(model), selection, specs, whole=True)
    assert isinstance(cut_micro_batch(micro, selection), Refused)


def test_an_unknown_name_of_the_images_is_an_error() -> None:
    model = Model()
    step, selection = step_of(model), select(model, "head")
    with pytest.raises(Exception, match="inputs='pixels': the batch has image, label, seeds"):
        cut_micro_batch(step.micro_batch(selection, batch()), selection, inputs=("pixels",))
    with pytest.raises(line.FrostLineError, match="the batch has no 'image'"):
        line_of(model).replace_images({"label": 1})


# --- the digest


def test_the_digest_follows_what_could_change_a_feature_and_nothing_else() -> None:
    model = Model()
    line = line_of(model)
    digest = line.digest()
    model.head.assign(model.head + 1.0)
    assert line.digest() == digest == line_of(model).digest()
    model.body[0, 0].assign(5.0)
    assert line.digest() != digest
    assert line_of(Model(lambda x, _: tf.tanh(x))).digest() != line_of(Model(lambda x, _: tf.nn.relu(x))).digest()
    loops = [
        line_of(Model(lambda x, _, n=n: tf.while_loop(lambda i, y: i < n, lambda i, y: (i + 1, y * 2.0), [0, x])[1]))
        for n in (2, 3)
    ]
    for loop in loops:
        loop.selection.variables.by_path()["body"].variable.assign(np.ones((6, 5)))
    assert loops[0].digest() != loops[1].digest()


PROGRAM = """
import sys
import numpy as np, tensorflow as tf
from engine import TrainStep, select
from engine.training import losses, optimizers
from engine.frostline.cuts import cut_step
from engine.models import build_model
for _ in range(int(sys.argv[1])):
    tf.function(lambda x: x * 2).get_concrete_function(tf.TensorSpec([]))  # other names, other numbers
model = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=int(sys.argv[1]) + 2).network
step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
batch = {"image": np.zeros((2, 8, 8, 1), np.float32), "label": np.zeros(2, np.int64)}
print("digest", cut_step(step, select(model, "head/.*"), batch).digest())
"""


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process() -> None:
    found = set()
    for number in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, number], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
        )
        found.add(done.stdout.split("digest ")[1])
    assert len(found) == 1


def test_evaluation_that_differs_by_mode_is_reported() -> None:
    class Modes(Model):
        def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
            x = tf.matmul(images, self.body)
            return tf.matmul(deep(tf.tanh(x) if training else tf.sigmoid(x)), self.head)

    model = Modes()
    line = line_of(model)
    assert line.tensors[0].name != "MatMul"
    found = cut_evaluation(Evaluator(losses.supervised_loss(model)), line.selection, line, batch())
    assert isinstance(found, Refused)
    assert "it depends on the mode" in found.describe()
