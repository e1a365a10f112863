"""Private names of TensorFlow and Keras still do what they are used for: one test a name."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine import keras_private, tensorflow_private


def test_op_definitions_tell_which_operations_exist_and_have_effects() -> None:
    assert tensorflow_private.op_definition("NoSuchOp") is None
    assert not tensorflow_private.op_definition("MatMul").is_stateful
    assert tensorflow_private.op_definition("RandomUniform").is_stateful


def test_whether_onednn_computes_is_known() -> None:
    assert tensorflow_private.uses_onednn() == (os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1")


def test_the_registry_of_gradients_tells_what_is_differentiable() -> None:
    assert tensorflow_private.has_gradient("MatMul")
    assert not tensorflow_private.has_gradient("Shape")
    assert not tensorflow_private.has_gradient("NoSuchOp")


def test_what_is_unrecorded_is_on_no_tape() -> None:
    x = tf.constant(2.0)
    with tf.GradientTape(persistent=True) as outer, tf.GradientTape() as tape:
        outer.watch(x)
        tape.watch(x)
        with tensorflow_private.unrecorded():
            y = x * x
        assert not tensorflow_private.is_recorded(y)
        assert tensorflow_private.is_recorded(x)
    assert tape.gradient(y, x) is None
    assert outer.gradient(y, x) is None


def test_a_handle_tells_the_shape_and_dtype_of_its_variable() -> None:
    variable = tf.Variable(tf.zeros([3, 2]))
    graph = tf.function(lambda: variable.read_value()).get_concrete_function().graph
    data = tensorflow_private.handle_data(graph.inputs[0])
    (entry,) = data.shape_and_type
    assert ([d.size for d in entry.shape.dim], entry.dtype) == ([3, 2], tf.float32.as_datatype_enum)


def test_a_variable_without_value_has_a_shape_and_a_dtype() -> None:
    variable = tensorflow_private.uninitialized_variable(
        shape=[1 << 20, 1 << 20], dtype=tf.float32, trainable=True, name="large"
    )
    assert (variable.shape.as_list(), variable.dtype) == ([1 << 20, 1 << 20], tf.float32)


def test_a_function_that_runs_can_be_cancelled() -> None:
    manager = tensorflow_private.cancellation_manager()
    endless = tf.function(lambda: tf.while_loop(lambda n: n < 1, lambda n: n * 0, [tf.constant(0)]))
    concrete = manager.get_cancelable_function(endless.get_concrete_function())
    manager.start_cancel()
    with pytest.raises(tf.errors.CancelledError):
        concrete()


def test_the_graph_optimizer_is_off_only_within_the_scope() -> None:
    x = tf.constant(np.linspace(0, 1, 64, dtype=np.float32))
    folded = tf.function(lambda x: tf.sqrt(tf.abs((x + 1000.0) + -999.0)))
    on = folded(x).numpy()
    with tensorflow_private.graph_optimizer_off():
        assert np.abs(folded(x).numpy() - on).max() > 0
        assert tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    np.testing.assert_array_equal(folded(x), on)
    assert not tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]


def test_an_unchecked_call_gives_what_a_call_gives() -> None:
    factor = tf.Variable(3.0)
    function = tf.function(lambda x: x * factor).get_concrete_function(tf.TensorSpec([2]))
    (found,) = tf.nest.flatten(tensorflow_private.call_unchecked(function, [tf.constant([1.0, 2.0])]))
    assert found.numpy().tolist() == [3.0, 6.0]


def test_functions_know_what_they_captured_and_have_a_graph() -> None:
    factor = tf.Variable(3.0)
    function = tf.function(lambda x: x * factor).get_concrete_function(tf.TensorSpec([2]))
    assert [variable is factor for variable in tensorflow_private.function_variables(function) or ()] == [True]
    assert tensorflow_private.function_variables(factor) is None
    definition, flat = tensorflow_private.function_graph(function.function_def)
    assert {"Mul", "Placeholder", "ReadVariableOp"} <= {node.op for node in definition.node}
    assert set(function.function_def.ret.values()) <= set(flat)
    assert not tensorflow_private.is_saved_object(tf.Module())
    assert tensorflow_private.is_saved_object(tf.train.Checkpoint())


def test_tf_module_names_what_it_skips() -> None:
    assert "_self_unconditional_dependency_names" in tensorflow_private.ignored_module_properties(tf.Module())


def test_reference_types_are_those_of_old_graphs() -> None:
    assert tensorflow_private.reference_type(tf.float32).name == "float32_ref"


def test_op_determinism_can_be_switched_off_again() -> None:
    from tensorflow.python.framework import config

    tf.config.experimental.enable_op_determinism()
    assert config.is_op_determinism_enabled()
    tensorflow_private.disable_op_determinism()
    assert not config.is_op_determinism_enabled()


def model() -> Any:
    inner = keras.Sequential([keras.layers.Dense(2, name="inner"), keras.layers.Dropout(0.5)])
    return keras.Sequential([keras.Input([3]), inner, keras.layers.BatchNormalization(name="norm")])


def test_keras_layers_are_listed_with_those_inside() -> None:
    made = model()
    names = [layer.name for layer in keras_private.flatten_layers(made, include_self=False)]
    assert {"inner", "norm"} <= set(names)
    assert made in keras_private.flatten_layers(made)
    assert {"inner"} <= {layer.name for layer in keras_private.child_layers(made.layers[0])}


def test_keras_keeps_what_was_made_trainable_apart_whatever_the_switch_says() -> None:
    norm = model().get_layer("norm")
    norm.trainable = False
    weights, others = keras_private.own_variables(norm)
    assert ([v.name for v in weights], [v.name for v in others]) == (
        ["gamma", "beta"],
        ["moving_mean", "moving_variance"],
    )


def test_keras_dropout_keeps_a_seed_generator() -> None:
    (generator,) = keras_private.seed_generators(keras.layers.Dropout(0.5))
    assert generator.state.shape == (2,)
    assert list(keras_private.seed_generators(keras.layers.Dense(1))) == []


class Own(keras.layers.Layer):
    """Has an attribute that Keras does not list."""

    def build(self, shape: Any) -> None:
        self.plain = tf.Variable(1.0)

    def call(self, x: Any, training: bool = False) -> Any:
        return x * (2.0 if training else 1.0)


def test_keras_layers_of_others_show_what_their_class_sets_and_can_be_held_in_inference_mode() -> None:
    own, norm, x = Own(), model().get_layer("norm"), np.ones((1, 3), np.float32)
    assert (keras_private.is_built_in(own), keras_private.is_built_in(norm)) == (False, True)
    assert own(x, training=True).numpy().max() == 2.0
    assert [name for name, _ in keras_private.own_attributes(own)] == ["plain"]
    assert (keras_private.takes_training(own), keras_private.takes_training(keras.layers.ReLU())) == (True, False)
    with keras_private.inference_mode([own]):
        assert own(x, training=True).numpy().max() == 1.0
    assert own(x, training=True).numpy().max() == 2.0


def test_keras_layers_keep_their_own_losses() -> None:
    layer = keras.layers.Dense(2, activity_regularizer=keras.regularizers.L2(1.0))
    layer(np.ones((1, 3), np.float32))
    assert len(keras_private.own_losses(layer)) == 1


def test_keras_records_the_calls_of_a_layer() -> None:
    assert len(keras_private.inbound_nodes(model().get_layer("norm"))) == 1


def test_keras_adam_keeps_two_moments_for_each_variable() -> None:
    optimizer = keras.optimizers.Adam()
    optimizer.build([keras.Variable(np.zeros(3, np.float32)), keras.Variable(np.zeros(2, np.float32))])
    assert len(keras_private.slot_variables(optimizer)) == 4


def test_keras_names_layers_in_snake_case_and_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keras_private.snake_case("BatchNormalization") == keras.layers.BatchNormalization().name.rstrip(
        "_0123456789"
    )
    assert isinstance(keras_private.home(), pathlib.Path)


def test_keras_applications_ask_the_replaced_function_for_their_file() -> None:
    asked = []

    def get_file(name: str, *_: Any, **__: Any) -> str:
        asked.append(name)
        raise FileNotFoundError(name)

    with keras_private.replaced_get_file(get_file), pytest.raises(FileNotFoundError):
        keras.applications.MobileNetV2(alpha=0.35, input_shape=(96, 96, 3), weights="imagenet", include_top=False)
    assert asked == ["mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"]


def test_a_layer_takes_another_policy_and_its_model_wider_inputs() -> None:
    layers = [keras.layers.Dense(2, dtype="mixed_bfloat16")]
    inner = keras.Sequential([keras.Input((3,), dtype="bfloat16"), *layers])
    image = keras.Input((3,))
    model = keras.Model(image, inner(image))
    keras_private.set_policy(layers[0], "float32")
    keras_private.widen_inputs(inner, "float32")
    x = np.float32([[1.0, 2.0**-12, 3.0]])
    np.testing.assert_allclose(model(x), x @ layers[0].kernel.numpy(), rtol=1e-5)  # two libraries round otherwise
    assert (layers[0].compute_dtype, inner.inputs[0].dtype) == ("float32", "float32")


def test_the_calls_of_a_function_are_inlined() -> None:
    inner = tf.function(lambda x: x * 2.0).get_concrete_function(tf.TensorSpec([2]))
    outer = tf.function(lambda x: inner(x) + 1.0).get_concrete_function(tf.TensorSpec([2]))
    assert "Mul" in {node.op for node in tensorflow_private.inline_calls(outer).node}


def test_the_global_seed_is_told() -> None:
    tf.random.set_seed(7)
    assert tensorflow_private.global_seed() == 7


def test_variables_are_told_before_keras_draws_their_values() -> None:
    told: list[tuple[tuple[int, ...], str]] = []
    with keras_private.watched_variables(lambda shape, dtype: told.append((tuple(shape), dtype))):
        keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    assert told == [((3, 2), "float32"), ((2,), "float32")]
    keras.layers.Dense(2).build([None, 3])
    assert len(told) == 2


def test_the_kernels_of_xla_are_known_before_anything_is_compiled() -> None:
    assert {"CPU", "XLA_CPU_JIT"} <= tensorflow_private.kernel_devices("MatMul")
    assert "XLA_CPU_JIT" not in tensorflow_private.kernel_devices("EagerPyFunc")
    assert not tensorflow_private.kernel_devices("NoSuchOp")


def test_xlas_barrier_gives_what_it_is_given() -> None:
    function = tf.function(lambda x: tensorflow_private.optimization_barrier([x, 2.0 * x])[0], jit_compile=True)
    np.testing.assert_array_equal(function(tf.constant([1.0, -0.0, np.inf])), [1.0, -0.0, np.inf])
    (kept,) = tf.nest.flatten(tensorflow_private.optimization_barrier([tf.constant(3.0)]))
    assert float(kept) == 3.0


def test_a_handle_gets_the_shape_of_another() -> None:
    variable = tf.Variable([1.0, 2.0])
    with tf.Graph().as_default():
        handle = tf.compat.v1.placeholder(tf.resource, [])
        tensorflow_private.copy_handle_data(variable.handle, handle)
        assert tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32).shape == [2]


def test_a_function_may_hold_calls_of_an_imported_library() -> None:
    definition = tf.function(lambda x: tf.while_loop(lambda y: y < 9.0, lambda y: (y * 2.0,), [x])[0])
    definition = definition.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def()
    for function in definition.library.function:
        name, function.signature.name = function.signature.name, f"{function.signature.name}_renamed"
        for node in definition.node:
            for value in node.attr.values():
                if value.func.name == name:
                    value.func.name = function.signature.name
    tensorflow_private.register_functions(definition.library)
    found = next(node.name for node in definition.node if "While" in node.op)
    given = next(node.name for node in definition.node if node.op == "Placeholder")

    @tf.function(autograph=False)
    def run(x: Any) -> Any:
        return tf.graph_util.import_graph_def(definition, {f"{given}:0": x}, [f"{found}:2"], name="")

    assert float(run(tf.constant(1.0))[0]) == 16.0


def test_a_runtime_that_has_started_is_known_and_joins_no_workers() -> None:
    tf.constant(0)
    assert tensorflow_private.has_started()
    with pytest.raises(RuntimeError, match="already started"):
        tensorflow_private.multi_worker_strategy(["127.0.0.1:1", "127.0.0.1:2"], 0, ring=True)


def test_the_logger_is_quiet_within_a_scope_alone() -> None:
    before = tf.get_logger().level
    with tensorflow_private.quiet_logger():
        assert not tf.get_logger().isEnabledFor(30)
    assert tf.get_logger().level == before
