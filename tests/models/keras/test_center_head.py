"""The centre head: maps on named stages of a backbone, that start as in the paper and do not mix examples."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import InputError
from engine.models import build_model
from engine.models.keras.center_head import FIRST_CHANCE, build_maps, choose_stages
from engine.models.keras.heads import Head, parse_head
from engine.models.keras.stages import Stage
from engine.selection.variables import name_variables

MOBILE = "keras:MobileNetV2,alpha=0.35"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "stride"),
    [
        (MOBILE, 4),
        (MOBILE, 8),
        ("keras:ResNet50", 4),
        ("keras:EfficientNetB0", 4),
    ],
)
def test_it_makes_maps_of_the_stride(spec: str, stride: int) -> None:
    head = f"centers,stride={stride}" + ",16" * (4 if stride == 4 else 3)
    model = build_model(spec, image_shape=(64, 96, 3), outputs=3 + 4, head=head)
    images = np.random.default_rng(0).normal(size=[2, 64, 96, 3]).astype(np.float32)
    maps = model.network(images, training=False).numpy()
    assert maps.shape == (2, 64 // stride, 96 // stride, 7)
    beside_another = model.network(np.concatenate([images[:1], images[1:] * 2]), training=False).numpy()
    np.testing.assert_allclose(beside_another[:1], maps[:1], atol=1e-5)
    biases = {
        entry.path: entry.variable.numpy() for entry in name_variables(model.network) if "_logits/bias" in entry.path
    }
    assert {path: set(value.round(6)) for path, value in biases.items()} == {
        "head/heat_logits/bias": {np.float32(FIRST_CHANCE)},
        "head/size_logits/bias": {0.0},
        "head/offset_logits/bias": {0.0},
    }
    assert all("head" in entry.groups for entry in name_variables(model.network) if entry.path.startswith("head/"))


def test_its_text_is_read_or_refused() -> None:
    assert parse_head("centers") == Head("centers", (), 4)
    assert parse_head("centers, stride=8 ,64,32,32") == Head("centers", (64, 32, 32), 8)
    for text, words in [
        ("centers,stride=5", "`stride=5` is not valid; expected stride=4, 8 and 16, once"),
        ("centers,stride=4,stride=4", "once"),
        ("gap,stride=4", "`stride=4` is not a valid part"),
        ("centres", "nearest: centers"),
    ]:
        with pytest.raises(InputError) as error:
            parse_head(text)
        assert words in str(error.value)


def test_other_sizes_strides_and_losses_are_refused_in_words() -> None:
    stages = [Stage(stride, f"layer_{stride}", None) for stride in (8, 16, 32)]
    assert [stage.stride for stage in choose_stages(stages, parse_head("centers,stride=16"), (96, 64))] == [16, 32]
    with pytest.raises(
        InputError, match=r"expected sides that are multiples of the stride 8, such as --image_size=96x120"
    ):
        choose_stages(stages, parse_head("centers,stride=8"), (100, 120))
    with pytest.raises(InputError, match=r"stride=4: the trunk has maps of the strides 8, 16 and 32"):
        choose_stages(stages, parse_head("centers"), (64, 64))
    with pytest.raises(InputError, match=r"4 outputs; it needs the loss centers"):
        build_maps(None, 4)
    with pytest.raises(InputError, match=r"has its own head"):
        build_model("cnn:mini", image_shape=(64, 64, 3), outputs=5, head="centers")
