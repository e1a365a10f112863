"""Proposals on names and shapes: what must be found, what must not be claimed, and texts that load."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from test_layouts import LAYOUTS, values, vit

from engine import porting
from engine.porting import plan
from engine.porting.proposals.proposal import Line, Proposal
from engine.porting.proposals.propose import SourceEntry, propose
from engine.porting.rules import detect
from engine.porting.rules.language import parse_rules
from engine.selection.variables import NamedVariable, name_variables

Shapes = dict[str, tuple[int, ...]]


def sources(shapes: Shapes, dtype: Any = np.float32) -> list[SourceEntry]:
    return [SourceEntry(name, shape, np.dtype(dtype)) for name, shape in shapes.items()]


def variables(shapes: Shapes, groups: Iterable[str] = ()) -> list[NamedVariable]:
    return [
        NamedVariable(path, (), tf.TensorSpec(shape, tf.float32), "weight", "", frozenset(groups), None, ())
        for path, shape in shapes.items()
    ]


def proposed(source: Shapes, target: Shapes) -> Proposal:
    return propose(sources(source), variables(target))


def sure(proposal: Proposal) -> dict[str, tuple[str, ...]]:
    return {line.target: line.source for line in proposal.lines if line.confidence >= 0.8}


def best(proposal: Proposal) -> dict[str, str]:
    return {line.target: line.source[0] for line in proposal.lines}


def line_of(proposal: Proposal, target: str) -> Line:
    return next(line for line in proposal.lines if line.target == target)


class Names:
    """A TensorSource of names and shapes alone."""

    path = pathlib.Path("names")
    checksums = False

    def __init__(self, entries: Iterable[SourceEntry]) -> None:
        self.entries = {entry.name: entry for entry in entries}

    def names(self) -> list[str]:
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.entries[name].dtype


def conv(name: str, shape: tuple[int, ...], words: tuple[str, str] = ("weights", "biases")) -> Shapes:
    return {f"{name}/{words[0]}": shape, f"{name}/{words[1]}": shape[-1:]}


KERAS = ("kernel", "bias")


# --- numbers ---


def test_numbers_shifted_by_one_correspond_by_rank_and_not_by_value() -> None:
    source = {k: v for n in range(1, 6) for k, v in conv(f"conv{n}", (3, 3, 8, 8)).items()}
    target = {k: v for n in range(5) for k, v in conv(f"conv2d_{n}" if n else "conv2d", (3, 3, 8, 8), KERAS).items()}
    found = sure(proposed(source, target))
    assert found["conv2d/kernel"] == ("conv1/weights",)
    assert found["conv2d_1/kernel"] == ("conv2/weights",)
    assert found["conv2d_4/bias"] == ("conv5/biases",)
    assert len(found) == 10


def test_numbers_are_numbers_and_not_text() -> None:
    source = {f"net/conv2d_{n}/kernel" if n else "net/conv2d/kernel": (3, 3, 8, 8) for n in sorted(range(12), key=str)}
    target = {f"features/conv_{n}/kernel": (3, 3, 8, 8) for n in range(1, 13)}
    found = sure(proposed(source, target))
    assert found["features/conv_3/kernel"] == ("net/conv2d_2/kernel",)
    assert found["features/conv_11/kernel"] == ("net/conv2d_10/kernel",)
    assert len(found) == 12


def test_automatic_numbers_that_contradict_the_order_of_the_model_are_not_trusted() -> None:
    source = {f"conv{n}/weights": (3, 3, 8, 8) for n in (1, 2, 3)}
    target = {f"{name}/kernel": (3, 3, 8, 8) for name in ("conv2d_2", "conv2d", "conv2d_1")}
    assert sure(proposed(source, target)) == {}


def test_a_series_that_lacks_a_number_at_its_end_is_not_shifted() -> None:
    source = {f"conv{n}/weights": (3, 3, 8, 8) for n in (1, 2, 3, 4)}
    target = {f"conv2d_{n}/kernel" if n else "conv2d/kernel": (3, 3, 8, 8) for n in range(5)}
    assert sure(proposed(source, target)) == {}  # either end may be what is missing


def test_names_without_a_number_come_before_those_with_one_also_within_a_word() -> None:
    source = {f"block{n}_attn/q/kernel": (8, 8) for n in range(1, 5)}
    target = {f"layer_{n}_attention/query/kernel" if n > 1 else "layer_attention/query/kernel": (8, 8) for n in range(1, 5)}  # fmt: skip
    found = best(proposed(source, target))
    assert found["layer_attention/query/kernel"] == "block1_attn/q/kernel"
    assert found["layer_4_attention/query/kernel"] == "block4_attn/q/kernel"


# --- towers, branches ---


def test_two_towers_that_names_do_not_tell_apart_are_left_to_the_user() -> None:
    shapes = [(3, 3, 3, 8), (3, 3, 8, 16)]
    source = {f"{t}/conv{n}/weights": s for t in ("left", "right") for n, s in enumerate(shapes)}
    target = {f"{t}/conv{n}/kernel": s for t in ("first_tower", "tower_b") for n, s in enumerate(shapes)}
    proposal = proposed(source, target)
    assert sure(proposal) == {}
    line = proposal.lines[0]
    assert line.confidence < 0.6
    assert {candidate.source for candidate in line.candidates} | set(line.source) == {"left/conv0/weights", "right/conv0/weights"}  # fmt: skip


def test_towers_whose_order_is_swapped_follow_their_names() -> None:
    shapes = [(3, 3, 3, 8), (3, 3, 8, 16)]
    source = {f"{t}/conv{n}/weights": s for t in ("left", "right") for n, s in enumerate(shapes)}
    target = {f"{t}_tower/conv_{n}/kernel": s for t in ("right", "left") for n, s in enumerate(shapes)}
    found = sure(proposed(source, target))
    assert found["right_tower/conv_1/kernel"] == ("right/conv1/weights",)
    assert found["left_tower/conv_0/kernel"] == ("left/conv0/weights",)
    assert len(found) == 4


def test_automatic_numbers_of_parallel_branches_are_not_trusted() -> None:
    shapes = [(3, 3, 3, 8), (3, 3, 8, 16)] * 2  # two towers, one after the other
    source = {f"conv2d_{n}/kernel" if n else "conv2d/kernel": s for n, s in enumerate(shapes)}
    target = {f"conv{n}/kernel": s for n, s in enumerate(shapes)}
    assert sure(proposed(source, target)) == {}


def test_one_source_for_two_branches_is_ambiguous() -> None:
    proposal = proposed({"branch/dense/kernel": (8, 8)}, {"branch_a/dense/kernel": (8, 8), "branch_b/dense/kernel": (8, 8)})  # fmt: skip
    assert sure(proposal) == {}
    assert len(proposal.missing) == 1


def test_words_that_exclude_each_other_are_never_paired_surely() -> None:
    source = {f"att/{w}/kernel": (8, 8) for w in ("query", "key")} | {"encoder/x/kernel": (4, 6)}
    target = {f"mha/{w}/kernel": (8, 8) for w in ("key", "value")} | {"decoder/x/kernel": (4, 6)}
    assert sure(proposed(source, target)) == {"mha/key/kernel": ("att/key/kernel",)}


def test_a_version_in_a_name_is_no_value_of_attention() -> None:
    source = {f"resnet_v1_50/att/{w}/kernel": (8, 8) for w in ("key", "value", "query")}
    found = sure(proposed(source, {f"mha/{w}/kernel": (8, 8) for w in ("query", "key", "value")}))
    assert found == {f"mha/{w}/kernel": (f"resnet_v1_50/att/{w}/kernel",) for w in ("query", "key", "value")}


# --- roles and layers ---


@pytest.mark.parametrize(
    "roles",
    [
        ("gamma", "beta", "moving_mean", "moving_variance"),
        ("scale", "offset", "mean", "var"),
        ("weight", "bias", "running_mean", "running_var"),
        ("scale", "bias", "pop_mean", "pop_variance"),
    ],
)
@pytest.mark.parametrize("layer", ["bn", "BatchNorm", "norm", "conv1.bn", "conv1_bn"])
def test_the_four_of_a_norm_are_found_under_all_their_names(roles: tuple[str, ...], layer: str) -> None:
    source = {f"{layer}.{role}": (8,) for role in roles}
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    target = {f"batch_normalization/{role}": (8,) for role in names}
    found = sure(proposed(source, target))
    assert found == {f"batch_normalization/{b}": (f"{layer}.{a}",) for a, b in zip(roles, names, strict=True)}


@pytest.mark.parametrize("name", ["W_conv1 b_conv1", "conv1_W conv1_b", "conv1/w conv1/b", "conv1.weight conv1.bias"])
def test_weights_and_biases_are_found_before_and_behind_the_layer(name: str) -> None:
    weight, bias = name.split()
    found = sure(proposed({weight: (3, 5, 4, 8), bias: (8,)}, {"first/kernel": (3, 5, 4, 8), "first/bias": (8,)}))
    assert found == {"first/kernel": (weight,), "first/bias": (bias,)}


def test_a_bias_is_not_taken_without_its_kernel() -> None:
    """The bias of a layer has the shape of another layer's, whose kernel is missing: that says little."""
    source = {"body/weights": (24, 60), "body/biases": (64,)}
    target = {"head/kernel": (8, 64), "head/bias": (64,)}
    assert sure(proposed(source, target)) == {}


def test_variables_of_a_layer_in_two_scopes_are_brought_together() -> None:
    source = {"sep/dw_conv/depthwise_weights": (3, 3, 4, 1), "sep/dw_conv/biases": (4,)}
    source |= conv("sep/pw_conv", (1, 1, 4, 4))
    source |= {"top/weights_class": (4, 3), "top/bias_weights": (3,)}
    target = (
        {"dw/kernel": (3, 3, 4, 1), "dw/bias": (4,)} | conv("pw", (1, 1, 4, 4), KERAS) | conv("dense", (4, 3), KERAS)
    )
    assert sure(proposed(source, target)) == {
        "dw/kernel": ("sep/dw_conv/depthwise_weights",), "dw/bias": ("sep/dw_conv/biases",),
        "pw/kernel": ("sep/pw_conv/weights",), "pw/bias": ("sep/pw_conv/biases",),
        "dense/kernel": ("top/weights_class",), "dense/bias": ("top/bias_weights",),
    }  # fmt: skip


def test_a_bias_is_not_brought_to_a_layer_that_only_has_a_number_more() -> None:
    source = conv("net/conv", (5, 5, 2, 8)) | {"net/conv1/weights": (3, 3, 3, 8)}
    proposal = proposed(source, conv("body/conv1", (3, 3, 3, 8), KERAS))
    assert set(sure(proposal)) == {"body/conv1/kernel"}


def test_whatever_could_take_the_place_of_a_missing_variable_is_offered() -> None:
    source = conv("conv1", (3, 3, 3, 8)) | {
        "foo/bias_of_nothing_else": (5,),
        "foo/depthwise": (3, 3, 8, 1),
        "foo/z": (7,),
    }
    target = conv("conv", (3, 3, 3, 8), KERAS) | {"a/depthwise_kernel": (3, 3, 8, 1), "b/bias": (5,), "c/gamma": (7,)}
    proposal = proposed(source, target)
    offered = best(proposal)
    offered |= {variable.path: candidate.source for variable in proposal.missing for candidate in variable.candidates}
    assert offered == {
        "conv/kernel": "conv1/weights", "conv/bias": "conv1/biases", "a/depthwise_kernel": "foo/depthwise",
        "b/bias": "foo/bias_of_nothing_else", "c/gamma": "foo/z",
    }  # fmt: skip
    assert {"b/bias", "c/gamma"}.isdisjoint(sure(proposal))


def test_the_list_of_what_is_left_to_the_user_is_whole() -> None:
    source = {f"left_{n}/some_long_scope_of_the_checkpoint/weights": (3, 3) for n in range(20)} | {"a\nb/y": (9, 9)}
    target = {f"right_{n}/another_long_scope_of_the_model/kernel": (3, 3) for n in range(19)}
    target |= {"z/kernel": (9, 3), "w/kernel": (9, 9)}
    proposal = proposed(source, target)
    rules = parse_rules(proposal.rules_text())
    decided = {rule.pattern.pattern for rule in rules.rules} | {line.pattern.pattern for line in rules.skip}
    left = proposal.left_to_user()
    assert len(left) > 10
    for name in (*target, *source):
        used = [line.target for line in proposal.lines if name in line.source]
        assert name in decided or any((word in entry) for entry in left for word in (name, *used)), name
    assert [entry.partition(":")[0] for entry in proposal.left_to_user(at_least=0)] == ["w/kernel  (0.25)", "z/kernel"]


def test_the_output_number_in_a_tensor_s_name_is_understood() -> None:
    source = {f"{name}:0": shape for name, shape in conv("conv1", (3, 3, 3, 8)).items()}
    source |= {"conv1/weights/Adam:0": (3, 3, 3, 8), "beta1_power:0": (), "conv1/biases/Momentum:0": (8,)}
    proposal = proposed(source, conv("conv", (3, 3, 3, 8), KERAS))
    assert sure(proposal) == {"conv/kernel": ("conv1/weights:0",), "conv/bias": ("conv1/biases:0",)}
    assert len(parse_rules(proposal.rules_text()).skip) == 3


# --- the cells of TensorFlow 1 (what they compute: tests/compat_v1/porting/test_recurrent_cells.py) ---


def lstm(name: str, inputs: int, units: int, gates: int = 4) -> Shapes:
    width = gates * units
    return {f"{name}/kernel": (inputs, width), f"{name}/recurrent_kernel": (units, width), f"{name}/bias": (width,)}


def test_a_fused_cell_becomes_three_variables_and_a_number_counts_cells() -> None:
    source = {k: v for n in range(3) for k, v in conv(f"rnn/cell_{n}/lstm_cell", (8, 16), KERAS).items()}
    proposal = proposed(
        source, lstm("lstm/lstm_cell", 4, 4) | lstm("lstm_1/lstm_cell", 4, 4) | lstm("lstm_2/lstm_cell", 4, 4)
    )
    assert proposal.sure() == 1
    assert line_of(proposal, "lstm_1/lstm_cell/kernel").source == ("rnn/cell_1/lstm_cell/kernel",)
    assert line_of(proposal, "lstm_2/lstm_cell/recurrent_kernel").transforms == ("slice(0, 4, 8)", "lstm_gates")
    assert line_of(proposal, "lstm_2/lstm_cell/bias").transforms == ("lstm_gates", "add(1.0, 0, 4, 1)")
    cudnn = conv("cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell", (8, 16), KERAS)
    assert line_of(proposed(cudnn, lstm("lstm/lstm_cell", 4, 4)), "lstm/lstm_cell/bias").transforms == ("lstm_gates",)


@pytest.mark.parametrize("extra", ["w_f_diag", "projection/kernel"])
def test_a_cell_that_keras_cannot_compute_is_not_proposed(extra: str) -> None:
    source = conv("rnn/lstm_cell", (11, 16), KERAS) | {f"rnn/lstm_cell/{extra}": (4, 4)}
    proposal = proposed(source, lstm("lstm/lstm_cell", 7, 4))
    assert proposal.lines == ()
    assert all(f"rnn/lstm_cell/{extra}" in variable.reason for variable in proposal.missing)


def test_layers_of_keras_on_both_sides_are_not_taken_for_cells() -> None:
    source = lstm("rnn/dense", 8, 8) | conv("rnn/out", (16, 32), KERAS)
    target = lstm("lstm/lstm_cell", 8, 8) | conv("dense", (16, 32), KERAS)
    assert not any("gates" in str(line.transforms) for line in proposed(source, target).lines)


# --- numbered layers of Keras 2 ---


def test_numbered_layers_are_followed_in_order_and_a_new_top_ends_them() -> None:
    names = {n: ("kernel", "bias") if n % 2 else ("depthwise_kernel",) for n in range(12)}
    sizes = {"kernel": (3, 3, 4, 1), "depthwise_kernel": (3, 3, 4, 1), "bias": (1,)}
    source = {f"model/layer_with_weights-{n}/{role}": sizes[role] for n in names for role in names[n]}
    target = {f"{'zyxwvutsrqpo'[n]}/{role.removeprefix('depthwise_')}": sizes[role] for n in names for role in names[n]}
    whole = proposed(source, target)
    assert sure(whole)["p/kernel"] == ("model/layer_with_weights-10/depthwise_kernel",)
    assert sure(whole)["q/bias"] == ("model/layer_with_weights-9/bias",)
    assert whole.sure() == 1
    top = proposed(source | conv("model/layer_with_weights-12", (4, 7), KERAS), target | conv("top", (4, 5), KERAS))
    assert set(sure(top)) == set(target)
    other = proposed(source | conv("model/layer_with_weights-0", (5, 5, 4, 4), KERAS), target)
    assert not {path for path, (name,) in sure(other).items() if "-0/" in name}


def test_a_head_of_other_classes_is_left_out_with_its_bias() -> None:
    source = conv("conv1", (3, 3, 3, 8)) | conv("logits", (8, 1000))
    target = conv("conv", (3, 3, 3, 8), KERAS) | conv("head", (8, 7), KERAS)
    proposal = proposed(source, target)
    assert set(sure(proposal)) == {"conv/kernel", "conv/bias"}
    assert [variable.path for variable in proposal.missing] == ["head/kernel", "head/bias"]
    assert {left.name for left in proposal.skips} == {"logits/weights", "logits/biases"}


def test_a_norm_without_gamma_leaves_the_models_gamma_missing() -> None:
    source = {"BatchNorm/beta": (8,), "BatchNorm/moving_mean": (8,), "BatchNorm/moving_variance": (8,)}
    target = {f"bn/{role}": (8,) for role in ("gamma", "beta", "moving_mean", "moving_variance")}
    proposal = proposed(source, target)
    assert set(sure(proposal)) == set(target) - {"bn/gamma"}
    assert [variable.path for variable in proposal.missing] == ["bn/gamma"]


def test_unrelated_tensors_of_equal_shape_change_nothing_sure_to_wrong() -> None:
    source = conv("conv1", (3, 3, 3, 8)) | conv("fc", (8, 5)) | {"aux/fc/weights": (8, 5), "noise/x": (5,)}
    found = sure(proposed(source, conv("conv2d", (3, 3, 3, 8), KERAS) | conv("dense", (8, 5), KERAS)))
    assert found["conv2d/kernel"] == ("conv1/weights",)
    assert found.get("dense/kernel", ("fc/weights",)) == ("fc/weights",)


# --- axes ---


def test_a_square_kernel_of_tensorflow_stays_as_it_is_and_says_so() -> None:
    line = proposed({"fc/kernel": (8, 8), "fc/bias": (8,)}, {"dense/kernel": (8, 8), "dense/bias": (8,)}).lines[0]
    assert line.transforms == ()
    assert line.confidence >= 0.8
    assert "does not decide whether to transpose: kept as it is" in line.reason


def test_square_kernels_alone_do_not_make_a_file_torchs() -> None:
    line = proposed({"fc.weight": (8, 8), "fc.bias": (8,)}, {"fc/kernel": (8, 8), "fc/bias": (8,)}).lines[0]
    assert line.confidence < 0.8


def test_torchs_kernels_are_transposed_square_ones_too() -> None:
    source = {
        "conv.weight": (8, 3, 5, 5), "conv.bias": (8,), "fc1.weight": (8, 8), "fc1.bias": (8,), "fc2.weight": (5, 8),
        "fc2.bias": (5,), "embed.weight": (11, 8),
    }  # fmt: skip
    target = conv("conv", (5, 5, 3, 8), KERAS) | conv("fc1", (8, 8), KERAS) | conv("fc2", (8, 5), KERAS)
    proposal = proposed(source, target | {"embed/embeddings": (11, 8)})
    assert len(sure(proposal)) == 7
    assert line_of(proposal, "conv/kernel").transforms == ("transpose(2, 3, 1, 0)",)
    assert line_of(proposal, "fc1/kernel").transforms == ("transpose(1, 0)",)
    assert line_of(proposal, "fc2/kernel").transforms == ("transpose(1, 0)",)
    assert line_of(proposal, "embed/embeddings").transforms == ()


def test_torchs_first_layer_behind_a_flattened_image_is_not_claimed() -> None:
    source = {"conv.weight": (8, 3, 5, 5), "conv.bias": (8,), "fc.weight": (10, 8 * 16), "fc.bias": (10,)}
    line = line_of(proposed(source, conv("conv", (5, 5, 3, 8), KERAS) | conv("fc", (128, 10), KERAS)), "fc/kernel")
    assert line.confidence < 0.8
    assert "channels" in line.reason


@pytest.mark.parametrize(
    ("source", "target", "transforms"),
    [
        ((7, 4, 8), (1, 7, 4, 8), ("reshape(1, 7, 4, 8)",)),
        ((1, 1, 4, 8), (4, 8), ("squeeze",)),
        ((4, 8), (1, 1, 4, 8), ("reshape(1, 1, 4, 8)",)),
        ((3, 3, 4, 8), (36, 8), ("reshape(36, 8)",)),
        ((3, 3, 4, 1), (3, 3, 4, 1), ()),
    ],
)
def test_kernels_are_reshaped_where_the_order_in_memory_is_the_same(
    source: tuple[int, ...], target: tuple[int, ...], transforms: tuple[str, ...]
) -> None:
    assert proposed({"a/weights": source}, {"a/kernel": target}).lines[0].transforms == transforms


def test_prelu_alphas_get_their_axes_of_one() -> None:
    line = proposed({"conv1/alphas": (8,)}, {"p_re_lu/alpha": (1, 1, 8)}).lines[0]
    assert line.transforms == ("reshape(1, 1, 8)",)


@pytest.mark.parametrize("fused", ["attn/qkv/kernel", "attn/c_attn/kernel"])
def test_query_key_and_value_in_one_are_taken_apart_and_put_together(fused: str) -> None:
    apart = {f"attention/{w}/kernel": (6, 6) for w in ("query", "key", "value")}
    divided = proposed({fused: (6, 18)}, apart)
    assert line_of(divided, "attention/key/kernel").transforms == ("split(1, 3, 1)",)
    joined = line_of(proposed(apart, {fused: (6, 18)}), fused)
    assert joined.source == tuple(apart)
    assert joined.transforms == ("concat(1)",)
    for proposal in (divided, proposed(apart, {fused: (6, 18)})):
        assert len(parse_rules(proposal.rules_text(at_least=0)).rules) == len(proposal.lines)


# --- what is no weight ---


def test_slots_averages_and_counters_are_skipped() -> None:
    source = conv("conv1", (3, 3, 3, 8)) | {
        "conv1/weights/Adam": (3, 3, 3, 8), "conv1/weights/Adam_1": (3, 3, 3, 8), "beta1_power": (), "global_step": (),
        "conv1/biases/Momentum": (8,), "conv1/weights/ExponentialMovingAverage": (3, 3, 3, 8),
        "training/conv1/biases/Adam": (8,), "training/Adagrad/conv1/weights/accumulator": (3, 3, 3, 8),
    }  # fmt: skip
    proposal = proposed(source, conv("conv", (3, 3, 3, 8), KERAS))
    assert sure(proposal) == {"conv/kernel": ("conv1/weights",), "conv/bias": ("conv1/biases",)}
    assert {left.name for left in proposal.skips if left.confidence >= 0.8} == set(source) - {"conv1/weights", "conv1/biases"}  # fmt: skip


def test_an_average_without_its_variable_is_taken_for_it() -> None:
    source = {f"{k}/ExponentialMovingAverage": v for k, v in conv("conv1", (3, 3, 3, 8)).items()}
    found = sure(proposed(source, conv("conv", (3, 3, 3, 8), KERAS)))
    assert found["conv/kernel"] == ("conv1/weights/ExponentialMovingAverage",)


def test_types_that_cannot_become_one_another_are_not_paired() -> None:
    proposal = propose(sources({"a/kernel": (3, 4)}, np.int32), variables({"a/kernel": (3, 4)}))
    assert proposal.lines == ()
    half = propose(sources({"a/kernel": (3, 4)}, ml_dtypes.bfloat16), variables({"a/kernel": (3, 4)}))
    assert len(half.lines) == 1


# --- texts ---

STRANGE = [
    "a.b*c[0]/kernel", "a b/kernel", 'quo"te/kernel', "back\\slash/kernel", "(paren|pipe)/kernel", "#hash/kernel",
    "<-/kernel", "été/核/kernel", "a\tb/kernel", "$^{3}/kernel", "skip", "detect/kernel", "-/kernel", "\\1/kernel", "+",
    "|", "a\u00a0b/kernel", "😀",
]  # fmt: skip


def test_strange_names_are_written_so_that_they_load() -> None:
    source = {name: (number + 2, 3) for number, name in enumerate(STRANGE)}
    target = {name: (number + 2, 3) for number, name in enumerate(STRANGE)}
    proposal = proposed(source, target)
    found = plan.build_plan(variables(target), Names(sources(source)), parse_rules(proposal.rules_text(at_least=0)))  # type: ignore[arg-type]
    assert {step.entry.path: step.sources for step in found.assignments} == {name: (name,) for name in STRANGE}
    assert (found.missing, found.unused, found.wrong) == ([], [], [])
    assert json.loads(json.dumps(proposal.to_json()))["lines"][0]["confidence"] > 0


def test_names_that_no_rule_can_write_are_comments() -> None:
    source = {"line\nbreak/kernel": (2, 3), "a #b/kernel": (3, 3)}
    proposal = proposed(source, {"one/kernel": (2, 3), "two/kernel": (3, 3)})
    text = proposal.rules_text(at_least=0)
    assert parse_rules(text).rules == ()
    assert text.count("cannot express") == len(proposal.lines) == 2
    assert "\n" not in proposal.table().splitlines()[1]


def test_the_rule_file_has_sure_lines_as_rules_and_the_others_as_comments_with_candidates() -> None:
    source = {f"{t}/kernel": (8, 8) for t in ("left", "right")} | conv("conv1", (3, 3, 3, 8)) | {"global_step": ()}
    target = {f"{t}/kernel": (8, 8) for t in ("alpha_net", "omega_net")} | conv("conv2d", (3, 3, 3, 8), KERAS)
    proposal = proposed(source, target)
    rules = parse_rules(proposal.rules_text())
    assert [rule.pattern.pattern for rule in rules.rules] == ["conv2d/kernel", "conv2d/bias"]
    assert [line.pattern.pattern for line in rules.skip] == ["global_step"]
    text = proposal.rules_text()
    left = next(line for line in text.splitlines() if line.startswith("# alpha_net/kernel <- "))
    assert 0 < float(left.split("  # ")[1].split()[0]) < 0.8
    assert "#     or " in text
    assert len(parse_rules(proposal.rules_text(at_least=0)).rules) == 4
    for line in text.splitlines():
        if "<-" in line:
            assert 0 <= float(line.split("  # ")[1].split()[0]) <= 1


def test_nothing_at_all_is_a_proposal_too() -> None:
    for proposal in (proposed({}, {}), proposed({}, {"a/kernel": (2, 3)}), proposed({"a/kernel": (2, 3)}, {})):
        parse_rules(proposal.rules_text())
        assert proposal.lines == ()
        assert proposal.sure() == 0
        assert proposal.table()


def test_empty_tensors_scalars_and_duplicates_do_no_harm() -> None:
    names = {"a/kernel": (0, 3), "b/scale": (), "A/kernel": (0, 3), "a.kernel": (0, 3), "a//kernel": (0, 3), "": (4,)}
    proposal = proposed(names, names)
    parse_rules(proposal.rules_text(at_least=0))
    assert len(proposal.lines) + len(proposal.missing) == len(names)
    assert len({line.source for line in proposal.lines}) == len(proposal.lines)


@pytest.mark.slow
def test_thousands_of_names_take_seconds_and_a_rule_file_keeps_its_limit() -> None:
    words = ("query", "key", "value", "output")
    source = {f"bert/encoder/layer_{i}/attention/{w}/kernel": (8, 8) for i in range(300) for w in words}
    target = {f"encoder/block{i + 1}/attn/{w}/kernel": (8, 8) for i in range(300) for w in "qkvo"}
    proposal = proposed(source, target)
    assert sure(proposal)["encoder/block11/attn/k/kernel"] == ("bert/encoder/layer_10/attention/key/kernel",)
    assert proposal.sure() == 1.0
    long = {f"{'x' * 250}{i}/kernel": (i + 1, 2) for i in range(1500)}
    assert len(proposed(long, long).rules_text(at_least=0).encode()) <= 1 << 20


# --- truth: the hand-written rules ---


@pytest.mark.parametrize("options", ["", "layer_scale"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_sure_line_contradicts_the_hand_written_rules(layout: str, options: str) -> None:
    if options and layout in ("vit_hf", "vit_augreg"):
        pytest.skip("this layout has no layer scale")
    network = vit(options)
    entries = [SourceEntry(name, array.shape, array.dtype) for name, array in LAYOUTS[layout](values(network)).items()]
    named = name_variables(network)
    proposal = propose(entries, named)
    truth = plan.build_plan(named, Names(entries), detect.shipped_rules()[layout], grid=(4, 4))  # type: ignore[arg-type]
    for step in truth.assignments:
        for line in (line for line in proposal.lines if line.target == step.entry.path and line.confidence >= 0.8):
            wanted = [str(t) for t in step.rule.transforms if t.name in ("transpose", "split")]
            assert line.source == step.sources
            assert [text for text in line.transforms if text.startswith(("transpose", "split"))] == wanted
    assert proposal.sure() > 0.6


def test_a_proposal_loads_as_the_hand_written_rules_do(tmp_path: pathlib.Path) -> None:
    one, two = vit(seed=1), vit(seed=2)
    np.savez(tmp_path / "timm.npz", **LAYOUTS["vit_timm"](values(one)))
    with porting.open_tensors(tmp_path / "timm.npz") as source:
        from engine.porting.proposals.propose import list_entries

        proposal = propose(list_entries(source), name_variables(two))
    assert proposal.sure() == 1.0
    (tmp_path / "mine.rules").write_text(proposal.rules_text())
    porting.load(two, tmp_path / "timm.npz", tmp_path / "mine.rules")
    for path, array in values(one).items():
        np.testing.assert_array_equal(values(two)[path], array, err_msg=path)
