"""Private names of TensorFlow and Keras still do what they are used for: one test a name."""

from __future__ import annotations

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


def test_the_registry_of_gradients_tells_what_is_differentiable() -> None:
    assert tensorflow_private.has_gradient("MatMul")
    assert not tensorflow_private.has_gradient("Shape")
    assert not tensorflow_private.has_gradient("NoSuchOp")


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


def test_an_unchecked_call_gives_what_a_call_gives() -> None:
    factor = tf.Variable(3.0)
    function = tf.function(lambda x: x * factor).get_concrete_function(tf.TensorSpec([2]))
    (found,) = tf.nest.flatten(tensorflow_private.call_unchecked(function, [tf.constant([1.0, 2.0])]))
    assert found.numpy().tolist() == [3.0, 6.0]


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
