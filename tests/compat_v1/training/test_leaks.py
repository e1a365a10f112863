"""Each leak of TF1's freezing methods shows itself on a real network, in the size that theory gives."""

from __future__ import annotations

import numpy as np
import pytest

from compat_v1.training import leaks
from engine import select
from engine.models import build_model


@pytest.fixture(scope="module")
def found() -> tuple[leaks.Subject, list[leaks.Leak]]:
    network = build_model("cnn:mini", image_shape=(8, 8, 1), outputs=4).network
    for index, entry in enumerate(select(network, "@all").variables):  # no weight is what it is initialised with
        entry.variable.assign(entry.variable + 0.01 * (index + 1))
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((6, 8, 8, 1)).astype(np.float32), "label": np.arange(6) % 4}
    selection = select(network, "head/.* stages/3/.*")
    subject = leaks.Subject(network, selection, batch, np.arange(12, dtype=np.int32).reshape(6, 2))
    return subject, leaks.measure_leaks(subject)


def test_every_leak_is_there_and_moves_frozen_variables_alone(found: tuple[leaks.Subject, list[leaks.Leak]]) -> None:
    subject, leaked = found
    frozen = {entry.path: entry for entry in subject.selection.frozen}
    weights = [path for path, entry in frozen.items() if entry.kind == "weight"]
    statistics = [path for path, entry in frozen.items() if entry.kind == "statistic"]
    exact = [weights, weights, weights, statistics, weights, weights, weights, list(frozen), weights]
    for number, (leak, wanted) in enumerate(zip(leaked, exact, strict=True)):
        if number in (0, 4):  # by the gradient itself: that of a shift before a BatchNorm is 0 but for rounding
            assert set(leak.moved) <= set(wanted)
            wanted = [path for path in wanted if not path.endswith("beta")]
        assert [path for path in leak.moved if path in wanted] == wanted, leak.name
        assert number in (0, 4) or leak.moved == wanted, leak.name
    assert all(leak.size > 0 for leak in leaked)


def test_sizes_are_what_the_rules_give(found: tuple[leaks.Subject, list[leaks.Leak]]) -> None:
    subject, leaked = found
    sizes = {number: leak.size for number, leak in enumerate(leaked)}
    weights = [e.variable.numpy() for e in subject.selection.frozen if e.kind == "weight"]
    largest = max(float(np.abs(value).max()) for value in weights)
    assert sizes[1] == pytest.approx(0.01 * 0.1 * largest, rel=1e-3)  # rate * penalty * weight
    assert sizes[2] == pytest.approx(0.01 * 0.1 * largest, rel=1e-3)
    assert 0.3 * 0.01 < sizes[5] < 0.01  # below one step of Adam, but not far
    assert sizes[6] == pytest.approx(largest)  # Ftrl sets the weight to 0
    assert sizes[8] == len(weights)


def test_a_network_without_statistics_borrows_the_small_cnn() -> None:
    network = build_model("vit:mini,depth=1", image_shape=(8, 8, 1), outputs=4).network
    batch = {
        "image": np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32),
        "label": np.arange(6) % 4,
    }
    subject = leaks.Subject(network, select(network, "@head"), batch, np.zeros((6, 2), np.int32))
    leak = leaks._statistics(leaks._cnn(subject))
    assert {path.split("/")[-1] for path in leak.moved} == {"moving_mean", "moving_variance"}
