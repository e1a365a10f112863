"""Files of BERT, MiniLM and DistilBERT, and of BERT in TensorFlow 1, loaded into the encoder by shipped rules."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import made_bert
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from engine import porting
from engine.models import bert_folder, build_model
from engine.models.weights import load_weights
from engine.porting.plan import build_plan
from engine.porting.readers.source import open_tensors
from engine.porting.rules import detect
from engine.selection.variables import name_variables

SHARED = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).parents[3] / "shared"))
TOKENS = np.array([[2, 7, 8, 3, 0, 0], [2, 9, 5, 6, 11, 3]], np.int32)


def build(folder: pathlib.Path, options: str = "") -> Any:
    return build_model(f"bert:{folder}{options}", image_shape=(6,), outputs=2)


def features(model: Any) -> np.ndarray:
    return model.network.features(tf.constant(TOKENS)).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_bert.make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(folder: pathlib.Path) -> np.ndarray:
    model = build(folder)
    load_weights(model)
    return features(model)


def old_norms(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names that files have which were converted from TensorFlow."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }


def test_names_with_a_prefix_other_norms_and_heads_on_top_are_the_same_weights(
    folder: pathlib.Path, expected: np.ndarray, tmp_path: pathlib.Path
) -> None:
    tensors = {f"bert.{name}": value for name, value in old_norms(made_bert.make_weights()).items()}
    tensors |= {
        "bert.embeddings.position_ids": np.arange(24)[None],
        "classifier.weight": np.ones([2, 8], np.float32),
        "classifier.bias": np.ones([2], np.float32),
        "cls.predictions.bias": np.ones([26], np.float32),
    }
    save_file(tensors, str(tmp_path / "classifier.safetensors"))
    model = build(folder, ",pool=pooler")
    loaded = load_weights(model, tmp_path / "classifier.safetensors")
    np.testing.assert_array_equal(features(model), expected)
    assert loaded.ledger is not None
    assert {each.name for each in loaded.ledger.skipped} == tensors.keys() - {
        f"bert.{name}" for name in old_norms(made_bert.make_weights())
    }
    assert not np.allclose(model.network.head.kernel, 1.0)  # that of another task is not taken


def test_distilbert_has_no_token_types(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    small = build(made_bert.make_folder(tmp_path / "distilled", kind=made_bert.DISTILBERT))
    assert load_weights(small).text.startswith("model.safetensors, 36 variables loaded by distilbert_hf.rules")
    whole = build(folder)
    tensors = made_bert.make_weights()
    tensors["embeddings.token_type_embeddings.weight"] *= 0
    save_file(tensors, str(tmp_path / "no_types.safetensors"))
    load_weights(whole, tmp_path / "no_types.safetensors")
    np.testing.assert_array_equal(features(small), features(whole))


def test_a_checkpoint_of_google_research_is_the_same_weights(
    folder: pathlib.Path, expected: np.ndarray, tmp_path: pathlib.Path
) -> None:
    tensors = made_bert.make_old() | {
        "cls/predictions/output_bias": np.zeros([26], np.float32),
        "bert/pooler/dense/kernel/adam_m": np.zeros([8, 8], np.float32),
        "global_step": np.int64(3),
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.get_variable(name, initializer=tf.constant(value)) for name, value in tensors.items()]
        session.run(tf.compat.v1.variables_initializer(made))
        tf.compat.v1.train.Saver(made).save(session, str(tmp_path / "bert_model.ckpt"))
    model = build(folder)
    assert load_weights(model, tmp_path / "bert_model.ckpt").text.startswith(
        "bert_model.ckpt, 37 variables loaded by bert_encoder_tf1.rules"
    )
    np.testing.assert_array_equal(features(model), expected)


def test_a_model_with_a_pooler_needs_one_in_the_file(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    save_file(made_bert.make_weights(pooler=False), str(tmp_path / "no_pooler.safetensors"))
    with pytest.raises(porting.PortError, match="pooler/kernel"):
        load_weights(build(folder, ",pool=pooler"), tmp_path / "no_pooler.safetensors")
    load_weights(build(folder), tmp_path / "no_pooler.safetensors")


# --- real files ---


@pytest.mark.skipif(not (SHARED / "models/minilm_l3_small").is_dir(), reason="needs shared/models/minilm_l3_small")
def test_minilm_equals_its_reference() -> None:
    folder = SHARED / "models/minilm_l3_small"
    model = build_model(f"bert:{folder}", image_shape=(32,), outputs=2)
    loaded = load_weights(model)
    assert loaded.text.startswith("model.safetensors, 53 variables loaded by bert_encoder_hf.rules")
    with np.load(folder / "reference.npz") as reference:
        tokens, mask, hidden = (reference[name] for name in ("input_ids", "attention_mask", "last_hidden"))
    found = model.network.features(tf.constant(tokens, tf.int32)).numpy()
    assert np.abs((found - hidden) * mask[..., None]).max() < 1e-4


@pytest.mark.skipif(not (SHARED / "tf1_checkpoints/bleurt_index_only").is_dir(), reason="needs shared/tf1_checkpoints")
def test_every_variable_of_a_real_bert_of_tensorflow_1_is_accounted_for() -> None:
    folder = SHARED / "tf1_checkpoints/bleurt_index_only"
    request = f"bert:{folder},pool=pooler"
    variables = name_variables(build_model(request, image_shape=(16,), outputs=1).network)
    with open_tensors(folder / "variables", whole=False) as source:
        rules = detect.choose_rules(source, variables)
        plan = build_plan(variables, source, rules)
        names = set(source.names())
    assert rules.name == "bert_encoder_tf1.rules"
    assert (plan.missing, plan.unused, plan.wrong) == ([], [], [])
    assert len(plan.assignments) == 39
    assert {each.name for each in plan.skipped} == {"dense/bias", "dense/kernel", "global_step"}
    assert names == {name for each in plan.assignments for name in each.sources} | {each.name for each in plan.skipped}
    assert bert_folder.read_folder(request, str(folder)).gelu == "tanh"
