"""Measure loading a pre-trained ViT from safetensors: memory beyond the built model, time against plain reading.

Writes a file of random weights in Hugging Face's ViT layout. Memory is measured in a process that
builds the model, resets the system's record of the peak and loads. Time is measured in another
process, load and plain reading in turn: all tensors through the library safetensors, once into a
dictionary (load_file) and once one by one. The file is in the system's cache for all of them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from engine.host import quantiles
from scripts import cli
from scripts.baselines import harness

F = flags.FLAGS

flags.DEFINE_string("model", "vit:B/16", "vit:Ti/16, vit:S/16, vit:B/16 or vit:L/16 (any patch size).")
flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels, a multiple of the patch size.")
flags.DEFINE_integer("repeats", 7, "Times that each is timed, in turn, after one time that is not counted.")
flags.DEFINE_string("folder", None, "Where the file is written (unless given, a temporary folder).")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); unless given, none.")
flags.DEFINE_enum("child", None, ["memory", "time"], "Internal: be the process that measures this.")
flags.DEFINE_string("weights", None, "Internal: the file that the process loads.")


def main() -> int:
    if F.child:
        print(json.dumps(_memory() if F.child == "memory" else _time()))
        return cli.DONE
    from engine.errors import InputError

    if not 1 <= F.repeats <= 1000:
        raise InputError(f"repeats={F.repeats}: it must be from 1 to 1000")
    if F.out is not None and not pathlib.Path(F.out).parent.is_dir():
        raise InputError(f"out={F.out!r}: its folder does not exist")
    with tempfile.TemporaryDirectory(prefix="benchmark_loading-", dir=F.folder) as folder:
        file = pathlib.Path(folder) / "model.safetensors"
        facts = _write(file)
        results = facts | _start("memory", file) | _start("time", file)
    _print(results)
    if F.out:
        from engine.files import write_json

        write_json(F.out, results)
        print(f"\nwritten: {F.out}")
    return cli.DONE


# ---- the file


def _write(file: pathlib.Path) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    config = _build().network.config
    tensors = {name: 0.02 * rng.standard_normal(shape, np.float32) for name, shape in _shapes(config)}
    save_file(tensors, file)
    return {
        "model": F.model,
        "tensors": len(tensors),
        "parameters": sum(array.size for array in tensors.values()),
        "file_bytes": file.stat().st_size,
        "largest_tensor_bytes": max(array.nbytes for array in tensors.values()),
    }


def _shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of transformers' ViTForImageClassification."""
    width = config.width
    yield "vit.embeddings.cls_token", (1, 1, width)
    yield "vit.embeddings.position_embeddings", (1, config.tokens, width)
    yield "vit.embeddings.patch_embeddings.projection.weight", (width, config.image[2], config.patch, config.patch)
    yield "vit.embeddings.patch_embeddings.projection.bias", (width,)
    dense = [(f"attention.attention.{name}", width, width) for name in ("query", "key", "value")]
    dense += [
        ("attention.output.dense", width, width),
        ("intermediate.dense", 4 * width, width),
        ("output.dense", width, 4 * width),
    ]
    for block in range(config.depth):
        for name, outputs, inputs in dense:
            yield f"vit.encoder.layer.{block}.{name}.weight", (outputs, inputs)
            yield f"vit.encoder.layer.{block}.{name}.bias", (outputs,)
        for norm in ("layernorm_before", "layernorm_after"):
            yield f"vit.encoder.layer.{block}.{norm}.weight", (width,)
            yield f"vit.encoder.layer.{block}.{norm}.bias", (width,)
    yield "vit.layernorm.weight", (width,)
    yield "vit.layernorm.bias", (width,)
    yield "classifier.weight", (config.classes, width)
    yield "classifier.bias", (config.classes,)


def _build() -> Any:
    from engine import models

    return models.build_model(F.model, image_shape=(F.image_size, F.image_size, 3), outputs=1000)


# ---- the processes that measure


def _start(what: str, file: pathlib.Path) -> dict[str, Any]:
    words = [f"--child={what}", f"--weights={file}"]
    words += [f"--{name}={F[name].value}" for name in ("model", "image_size", "repeats")]
    command = [sys.executable, "-m", "scripts.benchmark_loading", *words]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"measuring {what} failed: {child.stderr.strip()[-500:]}")
    return json.loads(child.stdout.splitlines()[-1])


def _memory() -> dict[str, Any]:
    from engine import porting

    network = _build().network
    built = _reset_peak()
    ledger = porting.load(network, F.weights)
    return {"variables": len(ledger.loaded), "rss_above_model_bytes": harness.peak_rss_bytes() - built}


def _reset_peak() -> int:
    """Resident memory now; on Linux later peaks count from here, elsewhere from the highest until now."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return harness.peak_rss_bytes()


def _time() -> dict[str, Any]:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    from engine import porting

    network = _build().network

    def one_by_one() -> None:
        with safe_open(F.weights, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 it is no dictionary
                file.get_tensor(name)

    runners: dict[str, Callable[[], Any]] = {
        "load": lambda: porting.load(network, F.weights),
        "load_file": lambda: load_file(F.weights),
        "one_by_one": one_by_one,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in range(F.repeats + 1):
        names = list(runners) if repeat % 2 else list(runners)[::-1]
        for name in names:
            start = time.perf_counter()
            runners[name]()
            seconds[name].append(time.perf_counter() - start)
    counted = {name: values[1:] for name, values in seconds.items()}

    def ratio(to: str) -> dict[str, float]:
        return quantiles([a / b for a, b in zip(counted["load"], counted[to], strict=True)])

    return {
        "seconds": {name: quantiles(values) for name, values in counted.items()},
        "ratio": {name: ratio(name) for name in ("load_file", "one_by_one")},
    }


def _print(results: dict[str, Any]) -> None:
    mebi, bound = 2**20, 3 * results["largest_tensor_bytes"] + 100_000_000
    print(
        f"{results['model']}, {results['parameters']:,} parameters in {results['tensors']} tensors, "
        f"{results['file_bytes'] / mebi:.0f} MiB; largest tensor {results['largest_tensor_bytes'] / mebi:.1f} MiB"
    )
    print(
        f"peak memory above the built model: {results['rss_above_model_bytes'] / mebi:.1f} MiB "
        f"(bound, 3 x largest tensor + 100 MB: {bound / mebi:.0f} MiB)\n"
    )
    print(f"{'':28}{'median s':>10}{'p10':>8}{'p90':>8}{'load is':>10}")
    titles = {
        "load": "engine.porting.load",
        "load_file": "safetensors load_file",
        "one_by_one": "safetensors, one by one",
    }
    for name, title in titles.items():
        row = results["seconds"][name]
        times = f"{results['ratio'][name]['median']:.2f} x" if name in results["ratio"] else ""
        print(f"{title:28}{row['median']:>10.3f}{row['p10']:>8.3f}{row['p90']:>8.3f}{times:>10}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
