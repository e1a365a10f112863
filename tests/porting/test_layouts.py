"""The four layouts that people have: files written by code of their own, not by the rules turned round."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine import porting
from engine.models import build_model
from engine.porting import PortError
from engine.porting.rules import detect
from engine.selection.variables import name_variables

Arrays = dict[str, np.ndarray]
WIDTH, HEADS, PATCH = 96, 3, 8


def vit(options: str = "", *, seed: int = 0, image: tuple[int, int, int] = (32, 32, 3), outputs: int = 5) -> Any:
    spec = f"vit:mini/{PATCH},depth=2" + (f",{options}" if options else "")
    network = build_model(spec, image_shape=image, outputs=outputs, seed=seed).network
    rng = np.random.default_rng(seed)
    for entry in name_variables(network):  # biases and norms too must be told apart
        entry.variable.assign(entry.variable + rng.normal(0, 0.1, entry.variable.shape).astype(np.float32))
    return network


def values(network: Any) -> Arrays:
    return {entry.path: entry.variable.numpy() for entry in name_variables(network)}


def images(shape: tuple[int, int, int] = (32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((2, *shape), np.float32)


def conv(kernel: np.ndarray) -> np.ndarray:
    """torch's [width, channels, rows, columns] of a patch kernel whose inputs are ordered row, column, channel."""
    channels = len(kernel) // PATCH**2
    weight = np.empty((kernel.shape[1], channels, PATCH, PATCH), np.float32)
    for row in range(PATCH):
        for column in range(PATCH):
            for channel in range(channels):
                weight[:, channel, row, column] = kernel[(row * PATCH + column) * channels + channel]
    return weight


def linear(out: Arrays, name: str, v: Arrays, path: str) -> None:
    out[f"{name}.weight"], out[f"{name}.bias"] = np.ascontiguousarray(v[f"{path}/kernel"].T), v[f"{path}/bias"]


def norm(out: Arrays, name: str, v: Arrays, path: str) -> None:
    out[f"{name}.weight"], out[f"{name}.bias"] = v[f"{path}/gamma"], v[f"{path}/beta"]


def embeddings(out: Arrays, v: Arrays, token: str, position: str, patch: str) -> None:
    if "class_token" in v:
        out[token] = v["class_token"]
    out[position] = v["position_embedding"]
    out[f"{patch}.weight"], out[f"{patch}.bias"] = conv(v["patch/kernel"]), v["patch/bias"]


def hf_attention(out: Arrays, name: str, v: Arrays, block: str) -> None:
    for which in ("query", "key", "value"):
        linear(out, f"{name}.attention.attention.{which}", v, f"{block}/attention/{which}")
    linear(out, f"{name}.attention.output.dense", v, f"{block}/attention/out")


def to_hf(v: Arrays) -> Arrays:
    out: Arrays = {}
    e = "embeddings."
    embeddings(out, v, e + "cls_token", e + "position_embeddings", e + "patch_embeddings.projection")
    for i in range(2):
        name, block = f"encoder.layer.{i}", f"blocks/{i}"
        norm(out, f"{name}.layernorm_before", v, f"{block}/norm1")
        hf_attention(out, name, v, block)
        norm(out, f"{name}.layernorm_after", v, f"{block}/norm2")
        linear(out, f"{name}.intermediate.dense", v, f"{block}/mlp/up")
        linear(out, f"{name}.output.dense", v, f"{block}/mlp/down")
    norm(out, "layernorm", v, "norm")
    out = {f"vit.{name}": array for name, array in out.items()}
    linear(out, "classifier", v, "head")
    return out


def to_dinov2(v: Arrays) -> Arrays:
    out: Arrays = {}
    e = "embeddings."
    embeddings(out, v, e + "cls_token", e + "position_embeddings", e + "patch_embeddings.projection")
    out["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)
    for i in range(2):
        name, block = f"encoder.layer.{i}", f"blocks/{i}"
        norm(out, f"{name}.norm1", v, f"{block}/norm1")
        hf_attention(out, name, v, block)
        norm(out, f"{name}.norm2", v, f"{block}/norm2")
        linear(out, f"{name}.mlp.fc1", v, f"{block}/mlp/up")
        linear(out, f"{name}.mlp.fc2", v, f"{block}/mlp/down")
        for scale in (1, 2):
            if f"{block}/scale{scale}" in v:
                out[f"{name}.layer_scale{scale}.lambda1"] = v[f"{block}/scale{scale}"]
    norm(out, "layernorm", v, "norm")
    out = {f"dinov2.{name}": array for name, array in out.items()}
    linear(out, "classifier", v, "head")
    return out


def to_timm(v: Arrays) -> Arrays:
    out: Arrays = {}
    embeddings(out, v, "cls_token", "pos_embed", "patch_embed.proj")
    for i in range(2):
        name, block = f"blocks.{i}", f"blocks/{i}"
        norm(out, f"{name}.norm1", v, f"{block}/norm1")
        parts = [f"{block}/attention/{which}" for which in ("query", "key", "value")]
        out[f"{name}.attn.qkv.weight"] = np.concatenate([v[f"{part}/kernel"].T for part in parts])
        out[f"{name}.attn.qkv.bias"] = np.concatenate([v[f"{part}/bias"] for part in parts])
        linear(out, f"{name}.attn.proj", v, f"{block}/attention/out")
        norm(out, f"{name}.norm2", v, f"{block}/norm2")
        linear(out, f"{name}.mlp.fc1", v, f"{block}/mlp/up")
        linear(out, f"{name}.mlp.fc2", v, f"{block}/mlp/down")
        for scale in (1, 2):
            if f"{block}/scale{scale}" in v:
                out[f"{name}.ls{scale}.gamma"] = v[f"{block}/scale{scale}"]
    for last in ("norm", "fc_norm"):
        if f"{last}/gamma" in v:
            norm(out, last, v, last)
    linear(out, "head", v, "head")
    return out


def to_augreg(v: Arrays) -> Arrays:
    size = WIDTH // HEADS
    out = {
        "embedding/kernel": v["patch/kernel"].reshape(PATCH, PATCH, -1, WIDTH),
        "embedding/bias": v["patch/bias"],
        "Transformer/posembed_input/pos_embedding": v["position_embedding"],
        "Transformer/encoder_norm/scale": v["norm/gamma"],
        "Transformer/encoder_norm/bias": v["norm/beta"],
        "pre_logits/kernel": np.zeros((WIDTH, WIDTH), np.float32),
        "pre_logits/bias": np.zeros(WIDTH, np.float32),
        "head/kernel": v["head/kernel"],
        "head/bias": v["head/bias"],
    }
    if "class_token" in v:
        out["cls"] = v["class_token"]
    for i in range(2):
        name, block = f"Transformer/encoderblock_{i}", f"blocks/{i}"
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out[f"{name}/{theirs}/scale"] = v[f"{block}/{ours}/gamma"]
            out[f"{name}/{theirs}/bias"] = v[f"{block}/{ours}/beta"]
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for which in ("query", "key", "value"):
            out[f"{attention}/{which}/kernel"] = v[f"{block}/attention/{which}/kernel"].reshape(WIDTH, HEADS, size)
            out[f"{attention}/{which}/bias"] = v[f"{block}/attention/{which}/bias"].reshape(HEADS, size)
        out[f"{attention}/out/kernel"] = v[f"{block}/attention/out/kernel"].reshape(HEADS, size, WIDTH)
        out[f"{attention}/out/bias"] = v[f"{block}/attention/out/bias"]
        for theirs, ours in (("Dense_0", "up"), ("Dense_1", "down")):
            out[f"{name}/MlpBlock_3/{theirs}/kernel"] = v[f"{block}/mlp/{ours}/kernel"]
            out[f"{name}/MlpBlock_3/{theirs}/bias"] = v[f"{block}/mlp/{ours}/bias"]
    return out


LAYOUTS: dict[str, Callable[[Arrays], Arrays]] = {
    "vit_augreg": to_augreg,
    "vit_hf": to_hf,
    "dinov2_hf": to_dinov2,
    "vit_timm": to_timm,
}


def written(folder: pathlib.Path, layout: str, arrays: Arrays) -> pathlib.Path:
    if layout == "vit_augreg":
        np.savez(folder / "weights.npz", **arrays)
        return folder / "weights.npz"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


CASES = [(layout, options) for layout in LAYOUTS for options in ("", "pool=mean")] + [
    ("dinov2_hf", "layer_scale"),
    ("vit_timm", "layer_scale"),
    ("vit_timm", "pool=mean,fc_norm"),
    ("vit_timm", "pool=mean,class_token,fc_norm,layer_scale"),
]


@pytest.mark.parametrize(("layout", "options"), CASES)
def test_a_file_of_each_layout_gives_equal_outputs(tmp_path: pathlib.Path, layout: str, options: str) -> None:
    one, two = vit(options, seed=1), vit(options, seed=2)
    arrays = LAYOUTS[layout](values(one))
    ledger = porting.load(two, written(tmp_path, layout, arrays))
    assert (ledger.rules, ledger.unused, ledger.missing, ledger.fresh) == (f"{layout}.rules", (), (), {})
    assert {entry.target for entry in ledger.loaded} == set(values(one))
    explained = {name for entry in ledger.loaded for name in entry.source} | {entry.name for entry in ledger.skipped}
    assert explained == set(arrays)
    for path, value in values(two).items():
        np.testing.assert_array_equal(value, values(one)[path], path)
    np.testing.assert_array_equal(two(images()), one(images()))


@pytest.mark.parametrize(("layout", "prefix"), [("vit_hf", "vit."), ("dinov2_hf", "dinov2."), ("vit_timm", "")])
@pytest.mark.parametrize("model", ["without a prefix", "with one"])
def test_a_bare_backbone_loads_and_its_head_stays_fresh(
    tmp_path: pathlib.Path, layout: str, prefix: str, model: str
) -> None:
    one, two = vit(seed=1), vit(seed=2)
    kept = values(two)
    arrays = {
        name.removeprefix(prefix) if model == "without a prefix" else name: array
        for name, array in LAYOUTS[layout](values(one)).items()
        if not name.startswith(("classifier", "head"))
    }
    if layout == "vit_hf":
        arrays |= {"pooler.dense.weight": np.ones((WIDTH, WIDTH), np.float32), "pooler.dense.bias": np.ones(WIDTH)}
    ledger = porting.load(two, written(tmp_path, layout, arrays))
    assert set(ledger.fresh) == {"head/kernel", "head/bias"}
    assert all("pooler" in entry.name or "mask_token" in entry.name for entry in ledger.skipped)
    np.testing.assert_array_equal(two.head.kernel, kept["head/kernel"])
    np.testing.assert_array_equal(two.features(images()), one.features(images()))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_head_for_other_classes_stays_fresh_and_is_told(tmp_path: pathlib.Path, layout: str) -> None:
    one, two = vit(seed=1), vit(seed=2, outputs=7)
    ledger = porting.load(two, written(tmp_path, layout, LAYOUTS[layout](values(one))))
    assert "[96, 5] in the file" in ledger.fresh["head/kernel"]
    assert "[96, 7] in the model" in ledger.fresh["head/kernel"]
    assert sum("stays fresh" in entry.rule for entry in ledger.skipped) == 2
    assert "fresh: head/kernel, head/bias" in ledger.summary()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_floats_become_float32(tmp_path: pathlib.Path, dtype: Any) -> None:
    one, two = vit(seed=1), vit(seed=2)
    arrays = {name: array.astype(dtype) for name, array in to_timm(values(one)).items()}
    porting.load(two, written(tmp_path, "vit_timm", arrays))
    np.testing.assert_array_equal(
        two.blocks[1].attention.key.kernel,
        values(one)["blocks/1/attention/key/kernel"].astype(dtype).astype(np.float32),
    )


# --- position embeddings of another grid ---


def bicubic(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """torch's bicubic upsampling of [height, width, channels], point by point, from its definition."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    height, width, channels = grid.shape
    out = np.zeros((rows, columns, channels))
    for i in range(rows):
        for j in range(columns):
            y, x = (i + 0.5) * height / rows - 0.5, (j + 0.5) * width / columns - 0.5
            for m in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for n in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    value = grid[min(max(m, 0), height - 1), min(max(n, 0), width - 1)]
                    out[i, j] += kernel(y - m) * kernel(x - n) * value
    return out


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("image", [(48, 16, 3), (16, 16, 3), (40, 64, 3)])
def test_position_embeddings_are_resized_as_torch_does(
    tmp_path: pathlib.Path, layout: str, image: tuple[int, int, int]
) -> None:
    one, two = vit(seed=1), vit(seed=2, image=image)
    rows, columns = image[0] // PATCH, image[1] // PATCH
    ledger = porting.load(two, written(tmp_path, layout, LAYOUTS[layout](values(one))))
    old, new = values(one)["position_embedding"], values(two)["position_embedding"]
    np.testing.assert_array_equal(new[:, 0], old[:, 0])  # the class token's
    wanted = bicubic(old[0, 1:].reshape(4, 4, WIDTH), rows, columns)
    np.testing.assert_allclose(new[0, 1:].reshape(rows, columns, WIDTH), wanted, rtol=0, atol=1e-6)
    assert f"position_embedding resized 4x4 to {rows}x{columns}" in ledger.summary()
    assert np.isfinite(two(images(image)).numpy()).all()


@pytest.mark.parametrize("new", [(2, 2), (3, 5), (7, 4), (1, 9), (16, 16)])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_resize_agrees_with_torch_itself(new: tuple[int, int], extra: int) -> None:
    torch = pytest.importorskip("torch")
    from engine.porting.rules.position_grid import resize_grid

    embedding = np.random.default_rng(0).standard_normal((1, extra + 20, 6), np.float32)
    result = resize_grid(embedding, (5, 4), new)
    image = torch.tensor(embedding[:, extra:]).reshape(1, 5, 4, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=False)
    np.testing.assert_allclose(
        result[:, extra:], wanted.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy(), rtol=0, atol=2e-6
    )
    np.testing.assert_array_equal(result[:, :extra], embedding[:, :extra])


def test_our_own_file_fits_another_image_size(tmp_path: pathlib.Path) -> None:
    one, two = vit(seed=1), vit(seed=2, image=(16, 48, 3))
    np.savez(tmp_path / "own.npz", **values(one))
    assert "resized 4x4 to 2x6" in porting.load(two, tmp_path / "own.npz").summary()


def test_our_own_file_of_a_grid_that_is_not_square_comes_back_as_it_was(tmp_path: pathlib.Path) -> None:
    one, two = vit(seed=1, image=(16, 64, 3)), vit(seed=2, image=(16, 64, 3))  # 2x8 patches, as many as 4x4
    np.savez(tmp_path / "own.npz", **values(one))
    porting.load(two, tmp_path / "own.npz")
    np.testing.assert_array_equal(two.position_embedding, one.position_embedding)


def test_equally_many_tokens_of_an_unknown_grid_are_not_guessed(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, "vit_hf", to_hf(values(vit(seed=1))))
    with pytest.raises(PortError, match=r"17 tokens.*write resize_grid\(4, 4\) or resize_grid\(2, 8\)"):
        porting.load(vit(image=(16, 64, 3)), path)


def test_a_class_token_that_only_one_side_has_is_an_error(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, "vit_timm", to_timm(values(vit("pool=mean", seed=1))))
    with pytest.raises(PortError, match=r"class_token \[1, 1, 96\] \(vit_timm.rules:\d+ expects cls_token"):
        porting.load(vit(), path)
    path = written(tmp_path, "vit_timm", to_timm(values(vit(seed=1))))
    with pytest.raises(PortError, match=r"in the file, not in the model \(1\):\n    cls_token"):
        porting.load(vit("pool=mean"), path)


# --- what does not fit ---


def test_layer_scale_that_only_the_file_has_is_listed_with_the_rule_that_would_take_it(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, "dinov2_hf", to_dinov2(values(vit("layer_scale", seed=1))))
    with pytest.raises(PortError) as caught:
        porting.load(vit(), path)
    message = str(caught.value)
    assert "in the file, not in the model (4)" in message
    assert "dinov2.encoder.layer.0.layer_scale1.lambda1 (dinov2_hf.rules:" in message
    assert r"for blocks/(\d+)/scale([12]))" in message


def test_layer_scale_that_only_the_model_has_is_missing(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, "vit_timm", to_timm(values(vit(seed=1))))
    with pytest.raises(PortError, match=r"blocks/0/scale1 \[96\] \(vit_timm.rules:\d+ expects blocks.0.ls1.gamma"):
        porting.load(vit("layer_scale"), path)


def test_a_norm_after_pooling_does_not_load_into_one_before_it(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, "vit_timm", to_timm(values(vit("pool=mean,fc_norm", seed=1))))
    with pytest.raises(PortError, match=r"(?s)norm/gamma.*fc_norm\.weight"):
        porting.load(vit("pool=mean"), path)


def test_a_deeper_file_is_an_error(tmp_path: pathlib.Path) -> None:
    one = build_model(f"vit:mini/{PATCH},depth=1", image_shape=(32, 32, 3), outputs=5).network
    path = written(tmp_path, "vit_hf", to_hf(values(vit(seed=1))))
    with pytest.raises(PortError, match=r"in the file, not in the model \(16\)"):
        porting.load(one, path)


def test_a_wider_file_is_an_error_that_shows_shapes_and_transforms(tmp_path: pathlib.Path) -> None:
    arrays = to_hf(values(vit(seed=1)))
    arrays["vit.encoder.layer.1.output.dense.weight"] = np.ones((100, 384), np.float32)
    with pytest.raises(PortError) as caught:
        porting.load(vit(), written(tmp_path, "vit_hf", arrays))
    assert (
        "blocks/1/mlp/down/kernel: [384, 100] in the file (from [100, 384] | transpose(1, 0)), [384, 96] in the model "
        "(vit_hf.rules:"
    ) in str(caught.value)


def test_when_no_rules_fit_both_sides_and_the_shipped_files_are_listed(tmp_path: pathlib.Path) -> None:
    save_file({"tower.0.w": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(PortError) as caught:
        porting.load(vit(), tmp_path / "other.safetensors")
    message = str(caught.value)
    assert "no rule file matches its names" in message
    assert "tower.0.w [3]" in message
    assert "patch/kernel [192, 96]" in message
    shipped = message.split("shipped rule files: ")[1].split(", ")
    assert set(shipped) >= {"dinov2_hf", "frostline", "vit_augreg", "vit_hf", "vit_timm"}


def test_rules_are_named_or_given_as_a_file(tmp_path: pathlib.Path) -> None:
    one, two = vit(seed=1), vit(seed=2)
    path = written(tmp_path, "vit_hf", to_hf(values(one)))
    assert porting.load(two, path, "vit_hf").rules == "vit_hf.rules"
    own = tmp_path / "mine.rules"
    own.write_text((pathlib.Path(detect.__file__).parent / "vit_hf.rules").read_text() + "skip? nothing\n")
    assert porting.load(two, path, own).rules == "mine.rules"
    with pytest.raises(
        PortError, match=r"rules=vit_hg: there is no such file; the shipped rules are .*nearest: vit_hf"
    ):
        porting.load(two, path, "vit_hg")
    with pytest.raises(PortError, match=r"vit_timm.rules:\d+ expects"):
        porting.load(two, path, "vit_timm")


def test_the_ledger_is_json(tmp_path: pathlib.Path) -> None:
    import json

    one = vit(seed=1)
    ledger = porting.load(vit(), written(tmp_path, "vit_timm", to_timm(values(one))))
    content = json.loads(json.dumps(ledger.to_json(target="vit:mini")))
    assert set(content) >= {"source", "target", "loaded", "skipped", "unused", "missing", "slots", "parity"}
    entry = next(entry for entry in content["loaded"] if entry["target"] == "blocks/1/attention/key/kernel")
    assert entry == {
        "source": ["blocks.1.attn.qkv.weight"],
        "target": "blocks/1/attention/key/kernel",
        "transforms": ["split(0, 3, 1)", "transpose(1, 0)"],
        "shape": [96, 96],
        "dtype": "float32",
        "confidence": 1.0,
    }
