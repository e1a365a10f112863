"""Weights leave TensorFlow as safetensors: names and shapes of other libraries, equal bits on the way back, equal outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from engine import porting
from engine.errors import InputError
from engine.export.leaving import Left, plan_leaving
from engine.export.libraries import choose_names
from engine.export.network_configs import Context
from engine.export.parity_files import make_reference
from engine.models import build_network
from engine.models.abstract import abstract_variables
from engine.porting.errors import PortError
from engine.porting.readers.safetensors_file import Safetensors
from engine.porting.whole_file import VariablesAsTensors
from engine.selection.variables import name_variables

Shapes = dict[str, list[int]]


def norm(name: str, width: int) -> Shapes:
    made = {f"{name}.{each}": [width] for each in ("weight", "bias", "running_mean", "running_var")}
    return made | {f"{name}.num_batches_tracked": []}


def resnet50(classes: int = 1000) -> Shapes:
    """The state_dict of torchvision's resnet50."""
    made = {"conv1.weight": [64, 3, 7, 7], **norm("bn1", 64)}
    before = 64
    for stage, count in enumerate((3, 4, 6, 3), 1):
        width = 32 << stage
        for unit in range(count):
            at = f"layer{stage}.{unit}"
            kernels = {1: [width, before, 1, 1], 2: [width, width, 3, 3], 3: [4 * width, width, 1, 1]}
            for number, kernel in kernels.items():
                made |= {f"{at}.conv{number}.weight": kernel, **norm(f"{at}.bn{number}", kernel[0])}
            if unit == 0:
                made |= {
                    f"{at}.downsample.0.weight": [4 * width, before, 1, 1],
                    **norm(f"{at}.downsample.1", 4 * width),
                }
            before = 4 * width
    return made | {"fc.weight": [classes, 2048], "fc.bias": [classes]}


def resnet50_hf(classes: int = 1000) -> Shapes:
    """The state_dict of transformers' ResNetForImageClassification."""
    layers = {f"conv{n}": f"layer.{n - 1}.convolution" for n in (1, 2, 3)} | {"downsample.0": "shortcut.convolution"}
    layers |= {f"bn{n}": f"layer.{n - 1}.normalization" for n in (1, 2, 3)} | {"downsample.1": "shortcut.normalization"}
    made: Shapes = {}
    for name, shape in resnet50(classes).items():
        first, _, rest = name.partition(".")
        if first.startswith("layer"):
            unit, rest = rest.split(".", 1)
            layer = next(each for each in layers if rest.startswith(f"{each}."))
            tail = rest.removeprefix(f"{layer}.")
            made[f"resnet.encoder.stages.{int(first[5:]) - 1}.layers.{unit}.{layers[layer]}.{tail}"] = shape
        else:
            place = {"fc": "classifier.1", "conv1": "convolution", "bn1": "normalization"}[first]
            made[f"{place}.{rest}" if first == "fc" else f"resnet.embedder.embedder.{place}.{rest}"] = shape
    return made


def mobile(stages: Any, *, squeeze: bool, classes: int = 1000) -> Shapes:
    """The state_dict of timm's mobilenetv2_100 and tf_efficientnet_b0; a stage is (expansion, filters, blocks, kernel)."""
    made = {"conv_stem.weight": [32, 3, 3, 3], **norm("bn1", 32)}
    before = 32
    for stage, (expansion, filters, count, kernel) in enumerate(stages):
        for unit in range(count):
            at, width = f"blocks.{stage}.{unit}", before * expansion
            plain = expansion == 1
            if not plain:
                made |= {f"{at}.conv_pw.weight": [width, before, 1, 1], **norm(f"{at}.bn1", width)}
            made |= {f"{at}.conv_dw.weight": [width, 1, kernel, kernel], **norm(f"{at}.bn{1 if plain else 2}", width)}
            if squeeze:
                inner = max(1, before // 4)
                made |= {f"{at}.se.conv_reduce.weight": [inner, width, 1, 1], f"{at}.se.conv_reduce.bias": [inner]}
                made |= {f"{at}.se.conv_expand.weight": [width, inner, 1, 1], f"{at}.se.conv_expand.bias": [width]}
            made |= {f"{at}.conv_pw{'' if plain else 'l'}.weight": [filters, width, 1, 1]}
            made |= norm(f"{at}.bn{2 if plain else 3}", filters)
            before = filters
    made |= {"conv_head.weight": [1280, 320, 1, 1], **norm("bn2", 1280)}
    return made | {"classifier.weight": [classes, 1280], "classifier.bias": [classes]}


MOBILENET = ((1, 16, 1, 3), (6, 24, 2, 3), (6, 32, 3, 3), (6, 64, 4, 3), (6, 96, 3, 3), (6, 160, 3, 3), (6, 320, 1, 3))
EFFICIENT = ((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3))


@pytest.mark.parametrize(
    ("model", "names", "rules", "expected", "count"),
    [
        pytest.param("keras:ResNet50", "timm", "resnet_timm", resnet50(), 320, marks=pytest.mark.slow),
        pytest.param("keras:ResNet50", "hf", "resnet_hf", resnet50_hf(), 320, marks=pytest.mark.slow),
        ("keras:MobileNetV2", "timm", "mobilenetv2_timm", mobile(MOBILENET, squeeze=False), 314),
        pytest.param(
            "keras:EfficientNetB0",
            "timm",
            "efficientnet_timm",
            mobile(EFFICIENT, squeeze=True),
            360,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_have_the_names_and_shapes_of_other_libraries(
    model: str, names: str, rules: str, expected: Shapes, count: int
) -> None:
    with abstract_variables():
        network = build_network(model, image_size=(32, 32))
    chosen = choose_names(names, VariablesAsTensors(name_variables(network)), network=network)
    assert chosen.family is not None
    assert chosen.family.rules == rules
    tensors = chosen.tensors
    assert {name: list(tensors.shape(name)) for name in tensors.names()} == expected
    assert len(expected) == count
    assert {tensors.dtype(name).name for name in tensors.names()} == {"float32", "int64"}
    config = chosen.family.config(tensors, Context(network=network))
    if rules == "resnet_timm":
        assert isinstance(config, str)
    else:
        assert isinstance(config, dict)
        assert config.get("num_classes", 1000) == len(config.get("id2label", range(1000))) == 1000


def small_resnet(*, bias: float = 0.0) -> Any:
    """A ResNet of Keras' layer names with one and two blocks, random values, and biases before norms."""
    import keras

    def conv(x: Any, name: str, filters: int, kernel: int = 1, strides: int = 1) -> Any:
        x = keras.layers.Conv2D(
            filters, kernel, strides, padding="same" if kernel == 3 else "valid", name=f"{name}_conv"
        )(x)
        return keras.layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)

    relu = keras.activations.relu
    images = keras.Input([32, 32, 3])
    x = relu(conv(keras.layers.ZeroPadding2D(3)(images), "conv1", 4, 7, 2))
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for name, filters, strides, first in (("conv2_block1", 4, 1, True), ("conv3_block1", 8, 2, True), ("conv3_block2", 8, 1, False)):  # fmt: skip
        shortcut = conv(x, f"{name}_0", 4 * filters, 1, strides) if first else x
        y = relu(conv(x, f"{name}_1", filters, 1, strides))
        y = conv(relu(conv(y, f"{name}_2", filters, 3)), f"{name}_3", 4 * filters)
        x = relu(shortcut + y)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(images, keras.layers.Dense(3, activation="softmax", name="predictions")(x))
    randomise(network, bias=bias)
    return network


def randomise(network: Any, *, bias: float = 0.0, seed: int = 0) -> None:
    """Values for all variables, such that outputs neither vanish nor explode; biases of convolutions up to ``bias``."""
    rng = np.random.default_rng(seed)
    for entry in name_variables(network):
        shape, name = entry.shape, entry.path.rsplit("/", 1)[-1]
        if "normalization/" in entry.path:
            continue
        if name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name == "bias" and "conv/" in entry.path:
            value = bias * rng.uniform(-1, 1, shape) if bias else np.zeros(shape)
        elif name == "kernel":
            fan = int(np.prod(shape[:2] if shape[-1:] == (1,) and len(shape) == 4 else shape[:-1]))
            value = rng.standard_normal(shape) * np.sqrt(2 / fan)
        else:
            value = 0.1 * rng.standard_normal(shape)
        entry.variable.assign(value.astype(np.float32))


def leave(network: Any, out: pathlib.Path, names: str, *, reference: Any = None) -> Left:
    variables = name_variables(network)
    planned = plan_leaving(names, VariablesAsTensors(variables), context=Context(network=network))
    return planned.write(out, ledger={"source": "made"}, reference=reference)


def bits(network: Any) -> dict[str, bytes]:
    return {entry.path: entry.variable.numpy().tobytes() for entry in name_variables(network)}


@pytest.mark.parametrize("names", ["timm", "hf", "keras"])
def test_out_and_in_again_gives_equal_bits(names: str, tmp_path: pathlib.Path) -> None:
    network, other = small_resnet(), small_resnet()
    randomise(other, bias=1.0, seed=1)
    left = leave(network, tmp_path / "x.safetensors", names)
    porting.load(other, tmp_path / "x.safetensors", "frostline" if names == "keras" else f"resnet_{names}")
    assert bits(other) == bits(network)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert (ledger["source"], ledger["names"], len(ledger["written"])) == ("made", names, left.tensors)
    assert not ledger["folded"]
    written = {path.name for path in tmp_path.iterdir()}
    script = set() if names == "keras" else {"x_parity.py"}
    assert written == {"x.safetensors", "ledger.json"} | script | ({"config.json"} if names == "hf" else set())
    with Safetensors(tmp_path / "x.safetensors") as file:
        assert file.metadata == ({} if names == "keras" else {"format": "pt"})
    if names == "hf":
        config = json.loads((tmp_path / "config.json").read_text())
        assert (config["depths"][:2], config["downsample_in_bottleneck"]) == ([1, 2], True)


def test_biases_that_pytorch_does_not_have_join_the_mean_and_the_function_stays(tmp_path: pathlib.Path) -> None:
    network, other = small_resnet(bias=0.5), small_resnet()
    left = leave(network, tmp_path / "x.safetensors", "timm")
    assert any(line.startswith("folded:  12 biases, such as conv1_conv/bias") for line in left.lines)
    porting.load(other, tmp_path / "x.safetensors", "resnet_timm")
    values, found = (
        {entry.path: entry.variable.numpy() for entry in name_variables(each)} for each in (network, other)
    )
    assert not found["conv1_conv/bias"].any()
    np.testing.assert_array_equal(
        found["conv1_bn/moving_mean"], values["conv1_bn/moving_mean"] - values["conv1_conv/bias"]
    )
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(other(images), network(images), atol=1e-6)
    assert len(json.loads((tmp_path / "ledger.json").read_text())["folded"]) == 12


class Made:
    """Values under made-up names."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.arrays = {
            n.replace("_S_", "/"): rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()
        }

    def names(self) -> list[str]:
        return list(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.arrays[name].dtype

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


@pytest.mark.parametrize(
    ("rules", "shapes", "message"),
    [
        (
            r"a/(\w+) <- a.\1",
            {"a_S_kernel": (2,), "b_S_kernel": (2,)},
            r"(?s)without a name \(1\):\n    b/kernel \[2\]",
        ),
        ("a <- a\nc <- c", {"a": (2,)}, r"(?s)names without a variable \(1\):\n    c \("),
        (r"(\w)/kernel <- x", {"a_S_kernel": (2,), "b_S_kernel": (2,)}, "a/kernel and b/kernel are all x"),
        (r"(\w)/kernel <- x", {"a_S_kernel": (2,), "b_S_kernel": (3,)}, "make x with different shapes"),
        ("a <- x | split(0, 3, 0)\nb <- x | split(0, 3, 1)", {"a": (2,), "b": (2,)}, "a and b make only a part of x"),
        ("a <- x | split(0, 2, 0)\nb <- x | split(0, 2, 0)", {"a": (2,), "b": (2,)}, "a and b are all x"),
        ("a <- x | reshape(-1)", {"a": (2,)}, "does not determine the shape"),
        ("a <- x + y | concat(0)", {"a": (2,)}, "does not tell how long"),
        (r"a <- x_\d+ | concat(0)", {"a": (2,)}, "numbered shards"),
        ("a <- x\n. <- y", {"a": (2,)}, "second rule for the variable a"),
        ("map part a=1\n(.) <- \\{part:1}", {"b": (2,)}, "`map part` does not have 'b'"),
        ("a <- y | folded", {"a": (2,)}, "a make only a part of y"),
    ],
)
def test_what_rules_cannot_write_is_refused(
    rules: str, shapes: dict[str, tuple[int, ...]], message: str, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "own.rules"
    file.write_text(rules)
    with pytest.raises(PortError, match=message):
        choose_names(str(file), Made(**shapes))


def test_rules_of_ones_own_name_tensors_and_what_rounds_is_refused(tmp_path: pathlib.Path) -> None:
    file, out = tmp_path / "own.rules", tmp_path / "x.safetensors"
    values = Made(net_S_kernel=(3, 2), net_S_bias=(2,))
    file.write_text("net/kernel <- fc.weight | transpose\nnet/bias <- fc.bias")
    plan_leaving(str(file), values, context=Context()).write(out, ledger={})
    with Safetensors(out) as found:
        np.testing.assert_array_equal(found.read("fc.weight"), values.arrays["net/kernel"].T)
    before = out.read_bytes()
    file.write_text("net/kernel <- fc.weight | cast(float16)\nnet/bias <- fc.bias")
    with pytest.raises(PortError, match=r"own.rules:1: net/kernel would come back from fc.weight with other bits"):
        plan_leaving(str(file), values, context=Context()).write(out, ledger={})
    assert out.read_bytes() == before


def test_a_network_that_no_library_has_and_a_config_of_another_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"names=timm: .*such as a/kernel.*--names=FILE"):
        choose_names("timm", Made(a_S_kernel=(2,)))
    for names in ("timm", "keras"):
        with pytest.raises(InputError, match="there are no variables to name"):
            choose_names(names, Made())
    with pytest.raises(PortError, match=r"rules=time: .*resnet_timm"):
        choose_names("time", Made(a_S_kernel=(2,)))
    network = small_resnet()
    (tmp_path / "y_parity.py").write_text("print('mine')")
    with pytest.raises(InputError, match=r"y_parity.py exists and is not one that this program wrote"):
        leave(network, tmp_path / "y.safetensors", "timm")
    (tmp_path / "y_parity.py").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    for names in ("timm", "hf"):
        with pytest.raises(InputError, match=r"config.json exists and is not of this network"):
            leave(network, tmp_path / "x.safetensors", names)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


BERT = {
    "bert.embeddings.word_embeddings.weight": [30, 8],
    "bert.embeddings.position_embeddings.weight": [16, 8],
    "bert.embeddings.token_type_embeddings.weight": [2, 8],
    "bert.embeddings.LayerNorm.weight": [8],
    "bert.embeddings.LayerNorm.bias": [8],
    **{
        f"bert.encoder.layer.{n}.{name}": shape
        for n in range(2)
        for name, shape in {
            **{f"attention.self.{each}.weight": [8, 8] for each in ("query", "key", "value")},
            **{f"attention.self.{each}.bias": [8] for each in ("query", "key", "value")},
            "attention.output.dense.weight": [8, 8],
            "attention.output.dense.bias": [8],
            "attention.output.LayerNorm.weight": [8],
            "attention.output.LayerNorm.bias": [8],
            "intermediate.dense.weight": [20, 8],
            "intermediate.dense.bias": [20],
            "output.dense.weight": [8, 20],
            "output.dense.bias": [8],
            "output.LayerNorm.weight": [8],
            "output.LayerNorm.bias": [8],
        }.items()
    },
    "bert.pooler.dense.weight": [8, 8],
    "bert.pooler.dense.bias": [8],
}


def bert_of_tensorflow() -> dict[str, tuple[int, ...]]:
    """The names of google-research/bert."""
    made = {
        f"bert/embeddings/{n}_embeddings": (rows, 8) for n, rows in (("word", 30), ("position", 16), ("token_type", 2))
    }
    norms, dense = ["bert/embeddings/LayerNorm"], {"bert/pooler/dense": (8, 8)}
    for layer in ("bert/encoder/layer_0", "bert/encoder/layer_1"):
        dense |= {f"{layer}/attention/self/{each}": (8, 8) for each in ("query", "key", "value")}
        dense |= {f"{layer}/attention/output/dense": (8, 8), f"{layer}/intermediate/dense": (8, 20)}
        dense |= {f"{layer}/output/dense": (20, 8)}
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    made |= {f"{name}/{part}": (8,) for name in norms for part in ("gamma", "beta")}
    made |= {f"{name}/kernel": shape for name, shape in dense.items()}
    return made | {f"{name}/bias": shape[1:] for name, shape in dense.items()}


def test_bert_has_the_names_of_transformers_and_comes_back(tmp_path: pathlib.Path) -> None:
    values = Made(**bert_of_tensorflow())
    out = tmp_path / "new/model.safetensors"
    out.parent.mkdir()
    planned = plan_leaving("hf", values, context=Context(source=tmp_path / "old/model.ckpt"))
    assert "bert_config.json" in str(planned.config())
    (tmp_path / "old").mkdir()
    given = {"hidden_size": 8, "num_attention_heads": 2, "hidden_act": "gelu", "vocab_size": 30}
    (tmp_path / "old/bert_config.json").write_text(json.dumps(given))
    planned.write(out, ledger={})
    config = json.loads((out.parent / "config.json").read_text())
    assert config.items() >= {"model_type": "bert", "num_hidden_layers": 2, "intermediate_size": 20, **given}.items()
    with Safetensors(out) as file:
        assert {name: list(file.shape(name)) for name in file.names()} == BERT
        kernel = values.arrays["bert/encoder/layer_1/intermediate/dense/kernel"]
        np.testing.assert_array_equal(file.read("bert.encoder.layer.1.intermediate.dense.weight"), kernel.T)
        planned.tensors.check_back(file)
    (tmp_path / "old/bert_config.json").write_text(json.dumps(given | {"vocab_size": 31}))
    assert "of another network (vocab_size)" in str(planned.config())


def test_a_real_bert_has_a_name_for_every_tensor() -> None:
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.porting.port import Weights

    shared = pathlib.Path(os.environ.get("FROSTLINE_SHARED", pathlib.Path(__file__).resolve().parents[3] / "shared"))
    place = shared / "tf1_checkpoints/bleurt_index_only/variables"
    if not place.with_name("variables.index").is_file():
        pytest.skip("needs ../shared/tf1_checkpoints")
    with open_source(place) as source:
        weights = Weights(source)
        planned = plan_leaving("hf", weights, context=Context(source=place))
    shapes = {name: list(planned.tensors.shape(name)) for name in planned.tensors.names()}
    sizes = {8: 128, 20: 512, 30: 30522, 16: 512, 2: 2}
    assert shapes == {name: [sizes[size] for size in shape] for name, shape in BERT.items()} | {
        "classifier.weight": [1, 128],
        "classifier.bias": [1],
    }
    config = planned.config()
    assert isinstance(config, dict)
    assert (config["num_attention_heads"], config["id2label"]) == (2, {"0": "LABEL_0"})


TORCH = """
import json, runpy, sys
out = []
for words in json.load(sys.stdin):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as done:
        out.append(done.code or 0)
print(json.dumps(out))
"""


def run_scripts(asked: list[list[str]]) -> tuple[list[Any], str]:
    """Runs parity scripts in one process that has torch, and returns their exit codes and all that they print."""
    place = os.environ.get("FROSTLINE_TORCH")  # a folder that has torch, where this environment does not
    if place is None and importlib.util.find_spec("torch") is None:
        pytest.skip("needs PyTorch")
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), *([place] if place else [])])
    done = subprocess.run(
        [sys.executable, "-c", TORCH], input=json.dumps(asked), env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if "No module named 'torch'" in done.stderr:
        pytest.skip("needs PyTorch")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def test_a_module_of_pytorch_takes_the_file_strictly_and_computes_the_same(tmp_path: pathlib.Path) -> None:
    network = small_resnet(bias=0.5)
    out = tmp_path / "it's.safetensors"
    leave(network, out, "timm", reference=make_reference(network, scales=False))
    script = str(tmp_path / "it's_parity.py")
    modules = ("small_resnet", "wrong_resnet", "other_names", "small_resnet")
    asked = [[script, f"torch_networks:{name}"] for name in modules]
    asked[-1].append("--activation=")
    codes, said = run_scripts(asked)
    assert codes == [0, 1, 2, 1], said
    assert "EQUAL: the module computes what the model of TensorFlow did" in said
    assert "NOT EQUAL: look at strides" in said
    assert 'Missing key(s) in state_dict: "0.weight"' in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "names", "module"),
    [
        ("keras:ResNet50", "timm", "resnet50"),
        ("keras:ResNet50", "hf", "resnet50_hf"),
        ("keras:MobileNetV2", "timm", "mobilenetv2"),
        ("keras:EfficientNetB0", "timm", "efficientnet"),
    ],
)
def test_whole_networks_compute_the_same_in_pytorch_and_come_back(
    model: str, names: str, module: str, tmp_path: pathlib.Path
) -> None:
    network = build_network(f"{model},classes=10", image_size=(64, 64))
    randomise(network, bias=0.0)
    scales = "Efficient" in model
    reference = make_reference(network, scales=scales)
    leave(network, tmp_path / "x.safetensors", names, reference=reference)
    before = bits(network)
    randomise(network, seed=1)
    found = porting.load(
        network, tmp_path / "x.safetensors", f"{model[6:].lower().removesuffix('50').removesuffix('b0')}_{names}"
    )
    assert bits(network) == before
    if scales:  # with a layer of Keras' that divides by the root of ImageNet's deviations
        assert len(found.fresh) == 3
        images = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
        deviations = np.sqrt([0.229, 0.224, 0.225])
        np.testing.assert_allclose([images["mean"], images["std"]], [[0.0] * 3, deviations], atol=1e-5)
    codes, said = run_scripts([[str(tmp_path / "x_parity.py"), f"torch_networks:{module}"]])
    assert codes == [0], said


@pytest.mark.parametrize(("names", "prefix"), [("timm", "blocks.0."), ("hf", "vit.encoder.layer.0.")])
def test_a_vit_leaves_with_its_configuration_and_comes_back(names: str, prefix: str, tmp_path: pathlib.Path) -> None:
    from engine.models import build_model

    def build(seed: int) -> Any:
        epsilon = ",norm_epsilon=1e-12" if names == "hf" else ""
        return build_model(f"vit:mini,depth=1{epsilon}", image_shape=(16, 32, 3), outputs=3, seed=seed).network

    network, other = build(1), build(2)
    leave(network, tmp_path / "x.safetensors", names, reference=make_reference(network, scales=False))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("num_classes") == 3 or list(config["id2label"].values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert "mean" not in config.get("pretrained_cfg", {})  # it is not known here
    with Safetensors(tmp_path / "x.safetensors") as file:
        assert any(name.startswith(prefix) for name in file.names())
        rules = (tmp_path / "own.rules", f"vit_{names}")
        text = (pathlib.Path(porting.__file__).parent / f"rules/{rules[1]}.rules").read_text()
        rules[0].write_text(text.replace("| resize_grid", "| resize_grid(4, 8)"))  # which the file does not say
        porting.load(other, file, rules[0])
    assert bits(other) == bits(network)
    if names == "hf":
        with pytest.raises(InputError, match="pool=mean"):
            leave(build_network("vit:mini,depth=1,pool=mean"), tmp_path / "y.safetensors", names)


def test_what_the_source_does_not_have_is_left_out_not_invented(tmp_path: pathlib.Path) -> None:
    network = small_resnet()
    values, absent = VariablesAsTensors(name_variables(network)), {"predictions/kernel": "no", "predictions/bias": "no"}
    planned = plan_leaving("hf", values, context=Context(network=network), absent=absent)
    planned.write(tmp_path / "x.safetensors", ledger={})
    assert not [name for name in planned.tensors.names() if name.startswith("classifier")]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ResNetModel"]
    assert json.loads((tmp_path / "ledger.json").read_text())["left_out"] == absent


def test_a_bias_that_trained_goes_back_into_a_file_of_pytorch(tmp_path: pathlib.Path) -> None:
    from engine.porting.reverse import Reverse

    network, name = small_resnet(), "resnet.embedder.embedder.normalization.running_mean"
    leave(network, tmp_path / "x.safetensors", "hf")
    variables = name_variables(network).by_path()
    with Safetensors(tmp_path / "x.safetensors") as file:
        before = file.read(name)
        assert Reverse(network, "resnet_hf", file).read(name).tobytes() == before.tobytes()
        variables["conv1_conv/bias"].variable.assign(np.full(4, 0.25, np.float32))
        np.testing.assert_array_equal(Reverse(network, "resnet_hf", file).read(name), before - np.float32(0.25))
        variables["conv1_bn/moving_mean"].variable.assign(before + np.float32(1))
        np.testing.assert_array_equal(
            Reverse(network, "resnet_hf", file).read(name), (before + np.float32(1)) - np.float32(0.25)
        )
