"""The device is chosen before TensorFlow starts, and one that is not there is refused with those that are."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from engine import devices
from engine.devices import Device, DeviceError, parse_device, select_device


class Machine:
    """A machine with GPUs, in place of TensorFlow's view of this one."""

    def __init__(self, patch: pytest.MonkeyPatch, gpus: int, *, started: int | None = None) -> None:
        self.gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(gpus)]
        self.visible, self.growing = list(self.gpus), []
        self.started = started is not None
        if started is not None:
            self.visible = self.gpus[started:]
        patch.setattr(tf.config, "list_physical_devices", lambda kind: self.gpus)
        patch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        patch.setattr(tf.config, "set_visible_devices", self.show)
        patch.setattr(tf.config.experimental, "set_memory_growth", self.grow)
        details = {"device_name": "Tesla T4", "compute_capability": (7, 5)}
        patch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
        build = {"cuda_version": "12.5", "cudnn_version": "9", "is_cuda_build": True}
        patch.setattr(tf.sysconfig, "get_build_info", lambda: build)
        patch.setattr(devices, "_gpu_memory", lambda number: 16 << 30)

    def show(self, wanted: list[Any], kind: str) -> None:
        if self.started:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = wanted

    def grow(self, gpu: Any, on: bool) -> None:
        if self.started:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growing.append(gpu)


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("gpu:0", 0), ("gpu:1", 1)])
def test_one_gpu_is_used_and_its_memory_grows(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    machine = Machine(monkeypatch, 2)
    device = select_device(name)
    assert machine.visible == machine.growing == [machine.gpus[number]]
    assert device.kind == devices.computing_kind() == "gpu"
    assert device.text() == f"gpu:{number}, Tesla T4 (compute capability 7.5), 16 GiB, CUDA 12.5, cuDNN 9"
    assert device.to_json()["libraries"] == {"CUDA": "12.5", "cuDNN": "9"}


def test_several_gpus_are_used_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 3)
    assert select_device(several=True).name == "gpu:0"
    assert machine.visible == machine.growing == machine.gpus
    assert select_device("gpu:2", several=True).name == "gpu:2"
    assert machine.visible == [machine.gpus[2]]
    Machine(monkeypatch, 3, started=1)
    assert select_device(several=True).name == "gpu:1"


def test_the_cpu_hides_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 2)
    assert select_device("cpu").kind == devices.computing_kind() == "cpu"
    assert machine.visible == machine.growing == []


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"^device=gpu:0: there is no such device; TensorFlow finds cpu"):
        select_device("gpu:0")
    Machine(monkeypatch, 2)
    with pytest.raises(
        DeviceError, match=r"^device=gpu:2: there is no such device; TensorFlow finds cpu, gpu:0 and gpu:1"
    ):
        select_device("gpu:2")


def test_once_tensorflow_has_started_its_device_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, 3, started=1)
    assert select_device("auto").name == select_device("gpu:1").name == "gpu:1"
    for other in ("cpu", "gpu:0", "gpu:2"):
        with pytest.raises(DeviceError, match=f"^device={other}: TensorFlow has already started on gpu:1; choose"):
            select_device(other)


@pytest.mark.parametrize(
    "wrong", ["gpu", "gpu:", "gpu:x", "gpu:-1", "GPU:0", "tpu:0", "", "gpu:0 ", "cpu:0", "gpu:99999"]
)
def test_a_text_that_names_no_device_is_refused(wrong: str) -> None:
    with pytest.raises(DeviceError, match="expected auto, cpu or gpu:N"):
        parse_device(wrong)


def test_the_processor_is_described_with_its_memory() -> None:
    device = select_device("auto")
    assert device.name == "cpu"
    assert device.memory_bytes is not None
    assert device.memory_bytes > 1 << 28
    assert "core" in device.description
    assert devices.peak_device_bytes() is None
    assert Device(name="cpu", description="x").text() == "cpu, x"


def test_instructions_for_bfloat16_are_read_from_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_fact", lambda key: "fpu amx_bf16 avx512_bf16" if key == "flags" else None)
    assert devices.bfloat16_instructions() == ("amx_bf16", "avx512_bf16")
    monkeypatch.setattr(devices, "_cpu_fact", lambda key: "fp asimd bf16" if key == "Features" else None)
    assert devices.bfloat16_instructions() == ("bf16",)
    monkeypatch.setattr(devices, "_cpu_fact", lambda key: None)
    assert devices.bfloat16_instructions() == ()
