"""A run is distributed as it is asked to be, or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
import workers

from engine import devices
from engine.distribution import join
from engine.distribution.distribution import ALONE, DistributionError, StoppedError
from engine.distribution.start import start_distribution
from engine.errors import InputError

TWO = '{"cluster": {"worker": ["127.0.0.1:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("mirored", {}, r"distribute='mirored': expected none, mirrored or multiworker; nearest: mirrored"),
        ("", {}, "distribute='': expected none, mirrored or multiworker"),
        ("none", {"logical_devices": 2}, "logical_devices=2: .* distribute=mirrored, but here distribute=none"),
        ("multiworker", {"logical_devices": 2}, "but here distribute=multiworker"),
        ("mirrored", {"logical_devices": 0}, "logical_devices=0: expected a number from 1 to 64"),
        ("mirrored", {"logical_devices": 65}, "logical_devices=65: expected a number from 1 to 64"),
        ("multiworker", {"timeout": 4.9}, "worker_timeout=4.9: expected a number of at least 5"),
        ("multiworker", {"timeout": float("nan")}, "worker_timeout=nan: expected a number of at least 5"),
        ("mirrored", {"device": "gpu:7"}, "device=gpu:7: there is no such device"),
        ("multiworker", {}, "TF_CONFIG: it is not set"),
    ],
)
def test_what_cannot_be_distributed_is_refused_in_words(kind: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        start_distribution(kind, environ={}, **given)


def test_a_process_in_which_tensorflow_has_started_joins_no_workers_and_gets_no_other_devices() -> None:
    tf.constant(0)
    with pytest.raises(DistributionError, match="TensorFlow has already started in this process"):
        start_distribution("multiworker", environ={"TF_CONFIG": TWO.replace("2222", str(workers.free_ports(1)[0]))})
    with pytest.raises(DistributionError, match="logical_devices=5: TensorFlow has already started with 1"):
        start_distribution("mirrored", environ={}, logical_devices=5)


def test_a_worker_that_is_asked_to_stop_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_start_server", lambda cluster, device: (None, None))
    ports = workers.free_ports(2)
    config = TWO.replace("127.0.0.1:2222", f"127.0.0.1:{ports[0]}").replace("b:2222", f"127.0.0.1:{ports[1]}")
    asked = iter([False, True])
    with pytest.raises(StoppedError, match=rf"^stopped while waiting for worker 1 \(127\.0\.0\.1:{ports[1]}\)$"):
        start_distribution("multiworker", environ={"TF_CONFIG": config}, stop=lambda: next(asked))


@pytest.mark.parametrize("text", ["", "{", TWO.replace(', "b:2222"', "")])
def test_one_process_is_alone_and_says_nothing_of_it(text: str) -> None:
    said: list[str] = []
    assert start_distribution("none", environ={"TF_CONFIG": text}, say=said.append) is ALONE
    assert not said


def test_a_process_that_ignores_tf_config_says_so() -> None:
    said: list[str] = []
    start_distribution("none", environ={"TF_CONFIG": TWO}, say=said.append)
    assert said == ["note: TF_CONFIG names 2 workers, but distribute=none: this process trains without the others"]


def test_all_gpus_are_replicas_and_logical_devices_are_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [SimpleNamespace(name=f"/device:GPU:{number}") for number in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(devices, "select_device", lambda name, several: devices.Device(name="gpu:0", description=""))
    monkeypatch.setattr(
        tf.distribute, "MirroredStrategy", lambda names: SimpleNamespace(names=names, num_replicas_in_sync=len(names))
    )
    run = start_distribution("mirrored", environ={})
    assert run.strategy is not None
    assert run.strategy.names == ["/device:GPU:0", "/device:GPU:1"]
    assert (run.share.first, run.share.stop, run.share.of) == (0, 2, 2)
    with pytest.raises(DistributionError, match=r"logical_devices=2: .* computes on gpu:0; leave them out"):
        start_distribution("mirrored", environ={}, logical_devices=2)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus[:1])
    with pytest.raises(DistributionError, match="already started with 1 of 2 GPUs"):
        start_distribution("mirrored", environ={})
