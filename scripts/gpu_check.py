"""Check a GPU in about ten minutes: contracts, steps in each precision beside Keras, and peak memory beside the forecast.

Each part runs in a process of its own, so that one which fails, or takes too long, leaves the others alone. First come the
contracts E1, E2, E3 (the engine against itself on the CPU) and E5, each with and without XLA; then steps in float32, TF32,
bfloat16 and float16, with and without XLA, of the engine and of Keras' fit on an equal ViT, with everything trained. The
results are written as they come into --out, and printed as one table at the end. Parts for which no time is left are
skipped, and said to be. Exit codes: 0 all contracts hold, 1 a contract or a part failed, 2 bad flags, or no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from absl import flags

from engine.text import table

from . import cli
from .baselines import harness

F = flags.FLAGS

CONTRACTS = ("E1", "E2", "E3", "E5")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
RUNNERS = ("engine", "keras")
_LIMITS = {"image_size": (1, 4096), "batch_size": (1, 65536), "steps": (1, 1_000_000), "minutes": (1, 1440)}
_LEAST = 20  # seconds, without which a part is not begun
_FORMAT = 1

flags.DEFINE_string(
    "device",
    "auto",
    "The device: auto (the first GPU; without one the check ends at once), gpu:N, or cpu, which tries the check itself.",
)
flags.DEFINE_string("model", "vit:S/16", "The ViT whose steps are timed: any plain ViT, as in benchmark_step.")
flags.DEFINE_integer("image_size", 224, "The height and width of its images in pixels.")
flags.DEFINE_integer("batch_size", 32, "The number of examples per step.")
flags.DEFINE_integer("steps", 10, "The number of timed steps, after two that are not timed.")
flags.DEFINE_list("contracts", list(CONTRACTS), "The contracts to check, comma-separated; '' checks none.")
flags.DEFINE_list("precisions", list(PRECISIONS), "The precisions to time steps in, comma-separated; '' times none.")
flags.DEFINE_list("xla", ["off", "on"], "Without and with XLA, comma-separated: off, on.")
flags.DEFINE_integer("minutes", 10, "The time that the check may take; a part that is begun may take all that is left.")
flags.DEFINE_string("out", "gpu_check.json", "A .json file for the results (times in ms, memory in bytes).")


def main() -> int:
    _check_flags()
    from engine import devices, host
    from engine.errors import InputError

    end = time.monotonic() + 60 * F.minutes
    host.import_tensorflow(start=False)  # the parts take the device's memory; this process only looks for it
    device = devices.select_device(F.device)
    if F.device == "auto" and device.kind == "cpu":
        raise InputError(
            "there is no GPU that TensorFlow can use; --device=cpu tries the parts of the check on the CPU"
        )
    found = {"device": device.to_json(), "versions": host.versions()}
    results: dict[str, Any] = {"format": _FORMAT, **found, "contracts": [], "steps": [], "failed": [], "done": False}
    print(f"device: {device.text()}", flush=True)
    for kind, part in _list_parts():
        _do(kind, part, results, end=end)
        _write(results)
    results["done"] = True
    _write(results)
    _print(results)
    bad = results["failed"] or not all(row["holds"] for row in results["contracts"])
    return cli.FAILED if bad else cli.DONE


def _list_parts() -> list[tuple[str, dict[str, Any]]]:
    xla = [word == "on" for word in F.xla]
    parts = [("check_contract", {"contract": name, "xla": each}) for name in F.contracts for each in xla]
    sizes = {name: F[name].value for name in ("model", "image_size", "batch_size", "steps")}
    for name in F.precisions:
        for each in xla:
            parts += [("measure_steps", {"precision": name, "runner": r, "xla": each, **sizes}) for r in RUNNERS]
    return parts


def _do(kind: str, part: dict[str, Any], results: dict[str, Any], *, end: float) -> None:
    """Runs a part, and adds what it found, or why it failed, to the results."""
    about = {name: part[name] for name in ("contract", "precision", "runner", "xla") if name in part}
    text = " ".join(f"{name}={value}" for name, value in about.items())
    left = int(end - time.monotonic())
    if left < _LEAST:
        results["failed"].append(about | {"reason": f"skipped: --minutes={F.minutes} are over"})
        return
    start = time.monotonic()
    found = _run(kind, part | {"device": F.device, "seconds": left})
    print(
        f"  {text}: {f'failed: {found}' if isinstance(found, str) else 'done'} ({time.monotonic() - start:.0f} s)",
        flush=True,
    )
    if isinstance(found, str):
        results["failed"].append(about | {"reason": found})
    elif kind == "check_contract":
        results["contracts"] += [about | row for row in found]
    else:
        results["steps"].append(about | found)


def _run(kind: str, argument: Mapping[str, Any]) -> Any:
    """What a part found, in a process of its own; the reason, a text, if it failed."""
    try:
        return harness.run_apart(f"gpu_parts:{kind}", argument, what=kind, tensorflow=False)
    except harness.BenchmarkError as error:
        return str(error).removeprefix(f"{kind} failed: ")


def _write(results: Mapping[str, Any]) -> None:
    from engine.files import write_json

    write_json(F.out, results)


def _print(results: Mapping[str, Any]) -> None:
    rows = [("contract", "XLA", "what", "found", "bound", "")]
    for row in results["contracts"]:
        held = "holds" if row["holds"] else "FAILS"
        rows.append((row["contract"], _xla(row), row["what"], f"{row['found']:.2g}", f"{row['bound']:g}", held))
    if len(rows) > 1:
        print("\n" + table(rows, right={3, 4}))
    _print_steps(results["steps"])
    for row in results["failed"]:
        what = " ".join(f"{name}={value}" for name, value in row.items() if name != "reason")
        print(f"not measured: {what}: {row['reason']}")
    print(f"\nwritten: {F.out}")


def _print_steps(steps: list[dict[str, Any]]) -> None:
    head = (
        "precision",
        "XLA",
        "engine ms",
        "keras ms",
        "engine to keras",
        "peak MiB",
        "forecast MiB",
        "keras peak MiB",
    )
    rows: list[tuple[str, ...]] = [head]
    by_place: dict[tuple[str, str], dict[str, Any]] = {}
    for row in steps:
        by_place.setdefault((row["precision"], _xla(row)), {})[row["runner"]] = row
    for place, runners in by_place.items():
        engine, keras = (runners.get(name) for name in RUNNERS)
        one, other = (None if row is None else row["step_ms"]["median"] for row in (engine, keras))
        shown = ["" if value is None else f"{value:.1f}" for value in (one, other)]
        shown.append(f"{one / other:.2f}" if one and other else "")
        for of, name in ((engine, "peak_bytes"), (engine, "forecast_bytes"), (keras, "peak_bytes")):
            shown.append("" if of is None or of[name] is None else f"{of[name] / 2**20:.0f}")
        rows.append((*place, *shown))
    if len(rows) > 1:
        print("\n" + table(rows, right=range(2, len(head))))


def _xla(row: Mapping[str, Any]) -> str:
    return "on" if row["xla"] else "off"


def _check_flags() -> None:
    from engine.devices import parse_device
    from engine.errors import InputError, check_range
    from engine.text import nearest

    for name, (least, most) in _LIMITS.items():
        check_range(name, F[name].value, least, most)
    parse_device(F.device)
    for name, known in (("contracts", CONTRACTS), ("precisions", PRECISIONS), ("xla", ("off", "on"))):
        F[name].value = [word for word in F[name].value if word]
        for word in F[name].value:
            if word not in known:
                raise InputError(f"{name}={word!r}: expected some of {', '.join(known)}{nearest(word, known)}")
    if not F.xla or not (F.contracts or F.precisions):
        raise InputError("xla, contracts, precisions: expected at least one of --xla, and a contract or a precision")
    cli.check_out(F.out)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
