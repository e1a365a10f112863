"""E8: the real ViT-S/14 gives its reference output."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from engine import models, porting

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder() -> pathlib.Path:
    """Where tools/make_vit_s14.py wrote its two files."""
    shared = ROOT.parent / "shared"
    places = [os.environ.get("FROSTLINE_VIT_S14"), shared, shared / "vit_s14"]
    for place in places:
        if place and (found := pathlib.Path(place) / "vit_s14.safetensors").is_file():
            return found.parent
    pytest.skip(
        "vit_s14.safetensors is neither in $FROSTLINE_VIT_S14 nor in ../shared; shared/tools/make_vit_s14.py writes it"
    )


def test_the_real_vit_s14_gives_its_reference_output(folder: pathlib.Path) -> None:
    network = models.build_model("vit:S/14,layer_scale", image_shape=(224, 224, 3), outputs=10).network
    ledger = porting.load(network, folder / "vit_s14.safetensors")
    assert (ledger.rules, ledger.unused, ledger.missing, ledger.skipped) == ("dinov2_hf.rules", (), (), ())
    assert len(ledger.loaded) == 222
    assert set(ledger.fresh) == {"head/kernel", "head/bias"}
    (resized,) = [entry for entry in ledger.loaded if entry.target == "position_embedding"]
    assert resized.transforms == ("resize_grid 37x37 to 16x16",)
    with np.load(folder / "vit_s14_reference.npz") as reference:
        image, wanted = reference["image"], reference["last_hidden"]
    hidden = network.features(image.transpose(0, 2, 3, 1)).numpy()
    assert hidden.shape == wanted.shape == (2, 257, 384)
    assert np.abs(hidden - wanted).max() <= 1e-4
