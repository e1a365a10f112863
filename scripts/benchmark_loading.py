"""Measure loading a pre-trained ViT from safetensors: memory above the built model, and time against plain reading.

Writes a file of random weights in Hugging Face's ViT layout. Memory is measured in a process that builds the model, resets
the system's record of the peak, and loads. Time is measured in another process, loading and plain reading in turn: the
library safetensors reads all tensors, once into a dictionary (load_file) and once one by one. The file is in the system's
cache for all of them.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from engine.host import peak_rss_bytes, quantiles
from engine.study import child

from . import cli

F = flags.FLAGS

flags.DEFINE_string("model", "vit:B/16", "The model: vit:Ti/16, vit:S/16, vit:B/16 or vit:L/16 (any patch size).")
flags.DEFINE_integer("image_size", 224, "The height and width of the images in pixels, a multiple of the patch size.")
flags.DEFINE_integer("repeats", 7, "How many times each is timed, in turn, after once that is not counted.")
flags.DEFINE_string("folder", None, "The folder in which the file is written, temporarily (by default the system's).")
flags.DEFINE_string("out", None, "A .json file for the results (seconds, bytes); by default none is written.")


def main() -> int:
    from engine.errors import check_range

    cli.import_tensorflow()

    check_range("repeats", F.repeats, 1, 1000)
    cli.check_out(F.out)
    with tempfile.TemporaryDirectory(prefix="benchmark_loading-", dir=F.folder) as folder:
        file = pathlib.Path(folder) / "model.safetensors"
        results = _write(file)
        job = {"model": F.model, "image_size": F.image_size, "weights": str(file), "repeats": F.repeats}
        for target in ("measure_memory", "measure_time"):
            results |= child.run_job(f"{__package__}.benchmark_loading:{target}", job)
    _print(results)
    cli.write_out(results)
    return cli.DONE


# ---- the file


def _write(file: pathlib.Path) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    config = _build(F.model, F.image_size).network.config
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
    """The names and shapes in transformers' ViTForImageClassification."""
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


def _build(model: str, image_size: int) -> Any:
    from engine import models

    return models.build_model(model, image_shape=(image_size, image_size, 3), outputs=1000)


# ---- the processes that measure


def measure_memory(job: dict[str, Any]) -> dict[str, Any]:
    from engine import porting

    network = _build(job["model"], job["image_size"]).network
    built = _reset_peak()
    ledger = porting.load(network, job["weights"])
    return {"variables": len(ledger.loaded), "rss_above_model_bytes": peak_rss_bytes() - built}


def _reset_peak() -> int:
    """The resident memory now. On Linux later peaks count from here, elsewhere from the peak so far."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_bytes()


def measure_time(job: dict[str, Any]) -> dict[str, Any]:
    from safetensors import safe_open
    from safetensors.numpy import load_file

    from engine import porting

    network, weights = _build(job["model"], job["image_size"]).network, job["weights"]

    def one_by_one() -> None:
        with safe_open(weights, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a dictionary
                file.get_tensor(name)

    runners: dict[str, Callable[[], Any]] = {
        "load": lambda: porting.load(network, weights),
        "load_file": lambda: load_file(weights),
        "one_by_one": one_by_one,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in range(job["repeats"] + 1):
        for name in list(runners) if repeat % 2 else list(runners)[::-1]:
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
