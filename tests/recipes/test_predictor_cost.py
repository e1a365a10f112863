"""What predicting many files costs beside the model itself: memory that does not grow, and hardly any time."""

from __future__ import annotations

import os
import pathlib
import time

import numpy as np
import pytest
from PIL import Image

from engine import host
from engine.models.registry import build_model
from engine.recipes.predictor import Predictor

SIZE, BATCH = 96, 64


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    shape = (SIZE, SIZE, 3)
    model = build_model("vit:Ti/16,depth=4", image_shape=shape, outputs=10)
    return Predictor(
        network=model.network, normalise=model.normalise, image_shape=shape, loss="softmax", class_names=None
    )


@pytest.mark.slow
def test_the_memory_of_ten_thousand_photos_is_that_of_a_thousand(predictor: Predictor, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        blocks = np.kron(rng.integers(0, 255, (9, 12, 3)), np.ones((12, 12, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(tmp_path / f"{number}.jpg")
    files = [tmp_path / f"photo{number}.jpg" for number in range(10_000)]
    for number, file in enumerate(files):
        os.link(tmp_path / f"{number % 20}.jpg", file)
    held: list[int] = []
    for number, batch in enumerate(predictor.predict_files(files, size=BATCH)):
        assert not batch.bad
        if number in (1000 // BATCH, 9900 // BATCH):
            held.append(host.resident_bytes())
    assert held[1] - held[0] < 20 << 20, [size >> 20 for size in held]


@pytest.mark.slow
def test_files_are_predicted_as_fast_as_prepared_batches_with_decoding_apart(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    files = [pathlib.Path(str(number)) for number in range(10 * BATCH)]
    prepared, function = predictor.prepare(images), predictor.function
    monkeypatch.setattr(Predictor, "read_file", lambda _, file: images[int(file.name) % BATCH])

    def bare() -> float:
        began = time.process_time()
        for _ in range(10):
            function(prepared)[0].numpy()
        return time.process_time() - began

    def whole() -> float:
        began = time.process_time()
        for batch in predictor.predict_files(files, size=BATCH):
            predictor.probabilities(batch.outputs[0])
        return time.process_time() - began

    bare(), whole()  # both are compiled now
    found = [bare() / whole() for _ in range(3)]  # of CPU time: other processes do not count
    assert max(found) > 0.95, found
