"""The device that a process computes on: chosen before TensorFlow starts, and described.

Of several GPUs one is used, and its memory grows with what is needed, so that others can use the rest. The names are those
of ``--device``: ``cpu``, and ``gpu:N`` as TensorFlow counts the GPUs of the machine (CUDA_VISIBLE_DEVICES hides some).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InputError
from engine.sizes import format_bytes
from engine.text import join_words, nearest

_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # the last one of Arm


class DeviceError(InputError):
    """A device that is not a valid one, is not there, or cannot be chosen any more."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that a process computes on.

    Attributes:
        name: ``cpu`` or ``gpu:N``.
        description: the name of the processor, with its cores, or of the GPU.
        memory_bytes: all its memory; None where that is not known.
        libraries: the versions of its libraries, such as CUDA's and cuDNN's, by name.
    """

    name: str
    description: str
    memory_bytes: int | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``cpu`` or ``gpu``."""
        return self.name.partition(":")[0]

    def text(self) -> str:
        """The device in a line, such as "cpu, AMD EPYC (2 cores), 7.6 GiB"."""
        size = "" if self.memory_bytes is None else f", {format_bytes(self.memory_bytes)}"
        with_libraries = "".join(f", {name} {version}" for name, version in self.libraries.items())
        return f"{self.name}, {self.description}{size}{with_libraries}"

    def to_json(self) -> dict[str, Any]:
        """What run.json records."""
        return {
            "name": self.name,
            "description": self.description,
            "memory_bytes": self.memory_bytes,
            "libraries": dict(self.libraries),
        }


def parse_device(text: str) -> tuple[str, int | None]:
    """Reads ``auto``, ``cpu`` or ``gpu:N``: the kind, and the number of a GPU; raises DeviceError for any other text.

    Example:
        >>> parse_device("gpu:1"), parse_device("cpu")
        (('gpu', 1), ('cpu', None))
    """
    if text in ("auto", "cpu"):
        return text, None
    if found := re.fullmatch(r"gpu:(\d{1,4})", text):
        return "gpu", int(found[1])
    raise DeviceError(f"device={text!r}: expected auto, cpu or gpu:N{nearest(text, ('auto', 'cpu', 'gpu:0'))}")


def select_device(name: str = "auto", *, several: bool = False) -> Device:
    """Makes TensorFlow compute on one device: the first GPU if there is one (``auto``), the CPU, or a GPU by number.

    The choice is made before TensorFlow starts, with its first operation; from then on, only the device in use is a valid
    one. On a machine without GPUs nothing is changed. With ``several``, ``auto`` takes all GPUs; the first one is returned.

    Raises:
        DeviceError: the device is not there, or TensorFlow has started with another one.

    Example:
        >>> from engine.devices import select_device
        >>> select_device("cpu").kind
        'cpu'
    """
    import tensorflow as tf

    kind, number = parse_device(name)
    gpus = tf.config.list_physical_devices("GPU")
    if kind == "gpu" and number is not None and number >= len(gpus):
        known = ["cpu", *(f"gpu:{place}" for place in range(len(gpus)))]
        raise DeviceError(
            f"device={name}: there is no such device; TensorFlow finds {join_words(known)}"
            + ("" if gpus or tf.test.is_built_with_gpu_support() else ", and this build of it is for CPUs alone")
        )
    if not gpus:
        return describe_cpu()
    wanted = [] if kind == "cpu" else gpus if several and kind == "auto" else [gpus[number or 0]]
    try:
        if tf.config.get_visible_devices("GPU") != wanted:
            tf.config.set_visible_devices(wanted, "GPU")
    except RuntimeError:  # it has started
        seen = tf.config.get_visible_devices("GPU")
        if kind == "auto" or (seen and seen[:1] == wanted):
            wanted = seen if several and kind == "auto" else seen[:1]
        else:
            used = f"gpu:{gpus.index(seen[0])}" if seen else "the CPU"
            raise DeviceError(
                f"device={name}: TensorFlow has already started on {used}; choose the device before its first operation, "
                "or hide the others with the environment variable CUDA_VISIBLE_DEVICES"
            ) from None
    for gpu in wanted:
        with contextlib.suppress(RuntimeError):  # it has started, and keeps the setting that it started with
            tf.config.experimental.set_memory_growth(gpu, True)
    return _describe_gpu(wanted[0], gpus.index(wanted[0])) if wanted else describe_cpu()


def computing_kind() -> str:
    """The kind of device that operations run on where nothing says otherwise: ``gpu`` or ``cpu``."""
    import tensorflow as tf

    return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"


def peak_device_bytes() -> int | None:
    """The largest amount of memory that tensors have taken on the GPU so far, in bytes; None where there is no GPU."""
    import tensorflow as tf

    if computing_kind() == "cpu":
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def describe_cpu() -> Device:
    """The processor of this machine."""
    name, cores = processor(), core_count()
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(name="cpu", description=f"{name} ({cores} core{'s'[: cores - 1]})", memory_bytes=memory)


def processor() -> str:
    """The processor's name as the system gives it, such as "AMD EPYC 7763 64-Core Processor"."""
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def core_count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def vector_instructions() -> tuple[str, ...]:
    """Which instructions for fast products this processor has, of those that libraries ask for, as Linux names them."""
    flags = (_cpu_fact("flags") or _cpu_fact("Features") or "").split()
    return tuple(name for name in ("avx2", "fma", "avx512f", *_BFLOAT16) if name in flags)


def bfloat16_instructions() -> tuple[str, ...]:
    """The processor's instructions that multiply bfloat16, as Linux names them; none where it does not say."""
    return tuple(name for name in vector_instructions() if name in _BFLOAT16)


def _cpu_fact(key: str) -> str | None:
    """The first value of this key in /proc/cpuinfo; None if there is none."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return " ".join(value.split())
    return None


def _describe_gpu(gpu: Any, number: int) -> Device:
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(gpu)
    build = tf.sysconfig.get_build_info()
    names = {"CUDA": "cuda_version", "cuDNN": "cudnn_version", "ROCm": "rocm_version"}
    name = str(details.get("device_name", "GPU"))
    if "compute_capability" in details:
        name += f" (compute capability {'.'.join(map(str, details['compute_capability']))})"
    return Device(
        name=f"gpu:{number}",
        description=name,
        memory_bytes=_gpu_memory(number),
        libraries={name: str(build[key]) for name, key in names.items() if build.get(key)},
    )


def _gpu_memory(number: int) -> int | None:
    """All memory of a GPU, as its driver says; TensorFlow has no way to ask. None where CUDA's driver is not there."""
    with contextlib.suppress(OSError, AttributeError):
        cuda = ctypes.CDLL("libcuda.so.1")
        size, device = ctypes.c_size_t(), ctypes.c_int()
        done = (cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), number))
        if done == (0, 0) and cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0:
            return int(size.value)
    return None
