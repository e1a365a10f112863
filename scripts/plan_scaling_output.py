"""What plan_scaling prints and writes: tables, scaling.json and scaling.png."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from engine.files import write_bytes, write_json
from engine.sizes import format_bytes
from engine.text import cut, table

from .plan_scaling_cases import SCALINGS, Case, Settings, base_name

_FORMAT = 1
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_STYLES = (":", "--", "-", "-.")


def tables(found: Sequence[Case], rows: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """What is printed: for each model its cases, and seconds per step by workers for both kinds of scaling."""
    parts = [
        f"{settings.all_reduce} all-reduce, latency {settings.latency * 1e6:g} us; one device for each worker; nothing of the "
        "reduction is hidden behind the backward pass"
    ]
    for model in dict.fromkeys(case.model for case in found):
        cases = [case for case in found if case.model == model]
        height, width = cases[0].image_size
        parts.append(
            f"{model} at {height}x{width} px, {cases[0].parameters:,} parameters, {settings.precision}\n"
            + _cases(cases)
        )
        for scaling, flag in SCALINGS.items():
            examples = f"{getattr(settings, flag):,}"
            what = {
                "strong": f"{examples} examples a step, which the workers share",
                "weak": f"{examples} examples a step for each worker",
            }
            chosen = [row for row in rows if (row["model"], row["scaling"]) == (model, scaling)]
            title = f"{what[scaling]}: seconds a step (examples per second, in multiples of one worker)"
            parts.append(f"{title}\n{_steps(chosen)}")
    return "\n\n".join(parts)


def _cases(cases: Sequence[Case]) -> str:
    rows = [("strategy", "trains", "bytes a step", "collectives", "s an example", "s a step", "compute")]
    for case in cases:
        assert case.compute is not None
        rows.append(
            (
                case.strategy,
                f"{case.trained_parameters:,}",
                f"{case.bytes_per_step:,} ({format_bytes(case.bytes_per_step)})",
                str(case.collectives),
                f"{case.compute.seconds_per_example:.4g}",
                f"{case.compute.seconds_per_step:.4g}",
                _source(case.source),
            )
        )
    return table(rows, right={1, 2, 3, 4, 5})


def _source(source: Mapping[str, Any]) -> str:
    """Where the compute of a case comes from; a file may say anything under ``measured``."""
    words = [base_name(source["given"])] if "given" in source else []
    measured = source.get("measured")
    if isinstance(measured, Mapping):
        device, taken = measured.get("device"), measured.get("taken_by_others")
        if isinstance(device, Mapping) and isinstance(name := device.get("description"), str):
            words.append(
                f"measured on {cut(name)}{', CPU seconds over cores' if measured.get('clock') == 'cpu' else ''}"
            )
        if isinstance(taken, float):
            words.append(f"{taken:.0%} of the machine busy with other work")
    return "; ".join(words)


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    workers = list(dict.fromkeys(row["workers"] for row in rows))
    lines = [("strategy", "link", *(f"{count:,}" for count in workers))]
    for strategy, bandwidth in dict.fromkeys((row["strategy"], row["bandwidth"]) for row in rows):
        cells = [
            f"{_short(row['seconds'])} ({_short(row['speedup'])})"
            for row in rows
            if (row["strategy"], row["bandwidth"]) == (strategy, bandwidth)
        ]
        lines.append((strategy, bandwidth, *cells))
    return table(lines, right=set(range(2, 2 + len(workers))))


def _short(value: float) -> str:
    """A number with 3 significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 else f"{value:.1e}"


def write(out: str, found: Sequence[Case], rows: Sequence[Mapping[str, Any]] | None, settings: Settings) -> None:
    """Writes scaling.json and scaling.png into a folder; without rows, the compute that has been measured so far."""
    folder = pathlib.Path(out)
    shared = dataclasses.asdict(settings)
    about = {name: shared[name] for name in ("classes", "precision", "batch_size", "worker_batch_size", "all_reduce")}
    compute = [case.to_json(settings) for case in found]
    body = {"format": _FORMAT, "finished": rows is not None, **about, "latency_seconds": settings.latency}
    body |= {"compute": compute, "rows": list(rows or ())}
    write_json(folder / "scaling.json", body)
    if rows is None:
        return
    written = ["scaling.json"]
    try:
        write_bytes(folder / "scaling.png", draw(rows, settings))
        written.append("scaling.png")
    except ImportError:
        print("scaling.png was not drawn: the package matplotlib is missing (extra `report`)")
        (folder / "scaling.png").unlink(missing_ok=True)
    print(f"\nwritten: {out} ({', '.join(written)})")


def draw(rows: Sequence[Mapping[str, Any]], settings: Settings) -> bytes:
    """Step time against workers as a PNG: a column for each model, a row for each kind of scaling, both axes logarithmic."""
    from matplotlib.figure import Figure

    models, strategies, links = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "strategy", "bandwidth")
    )
    ticks = sorted({row["workers"] for row in rows})
    figure = Figure(figsize=(5.2 * len(models), 7.6), layout="constrained")
    grid = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey="row")
    for across, model in enumerate(models):
        for down, (scaling, flag) in enumerate(SCALINGS.items()):
            axes = grid[down][across]
            for strategy in strategies:
                for link in links:
                    line = [
                        row
                        for row in rows
                        if (row["model"], row["scaling"], row["strategy"], row["bandwidth"])
                        == (model, scaling, strategy, link)
                    ]
                    line.sort(key=lambda row: row["workers"])
                    axes.plot(
                        [row["workers"] for row in line],
                        [row["seconds"] for row in line],
                        color=_COLOURS[strategies.index(strategy) % len(_COLOURS)],
                        linestyle=_STYLES[links.index(link) % len(_STYLES)],
                        marker=".",
                        label=f"{strategy}, {link}",
                    )
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{count:,}" for count in ticks], minor=False)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
            each = "in all" if scaling == "strong" else "for each worker"
            axes.set_title(f"{model}: {getattr(settings, flag):,} examples a step {each}", fontsize=10)
            axes.set_xlabel("workers")
            axes.set_ylabel("seconds a step")
    lines, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside lower center", ncols=min(len(strategies), 6))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()
