"""The file card.md: a run described for people who will use its model."""

from __future__ import annotations

import math
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from engine.files import write_bytes
from engine.runs import records
from engine.sizes import format_bytes
from engine.text import join_words
from engine.training.loop import Stage
from engine.training.loss_names import CENTERS, parse_losses
from engine.training.phases import Evaluation

NAME = "card.md"
_GIVEN = {
    "images": ("images", "--images=FOLDER"),
    "texts": ("texts", "--texts=FILE"),
    "table": ("rows of a table", "--table=FILE"),
}


def write_card(
    out: pathlib.Path, run: Mapping[str, Any], *, stages: Sequence[Stage], evaluations: Sequence[Evaluation]
) -> None:
    """Writes the card into the folder of a run.

    Args:
        run: the content of run.json.
        stages: the phases that have begun, with their selections.
        evaluations: all evaluations.
    """
    parts = [
        _describe(run),
        _describe_training(run, stages),
        _describe_figures(run, evaluations),
        _describe_proof(run),
        _describe_cost(run),
        _describe_use(out, run),
    ]
    write_bytes(out / NAME, ("\n\n".join(parts) + "\n").encode(errors="replace"))


def _describe_input(shape: Sequence[int]) -> tuple[str, str]:
    """A row on what an example is."""
    if len(shape) != 3:
        return "inputs", f"shape {list(shape)}"
    height, width, channels = shape
    return "images", f"{height}x{width} pixels, {channels} channel{'s'[: channels - 1]}"


def _describe_task(task: Mapping[str, Any]) -> str:
    """What one of several outputs stands for."""
    names = task["class_names"]
    return f"{len(names)} classes: {join_words(names, most=30)}" if names else f"{task['outputs']} numbers"


def _describe(run: Mapping[str, Any]) -> str:
    model, data, flags = run["model"], run["data"], run["flags"]
    rows = [
        ("model", f"`{model['name']}`, {model['parameters']:,} parameters"),
        ("started from", f"`--weights={flags['weights']}`"),
        ("data", f"{_plain(data['name'])}: {data['train_examples']:,} training and {data['eval_examples']:,} evaluation examples"),
        _describe_input(data["image_shape"]),
    ]  # fmt: skip
    for task in data.get("tasks", ()):
        rows.append((f"output {_plain(task['name'])}", _plain(f"{task['loss']}, {_describe_task(task)}")))
    if data["class_names"] and "tasks" not in data:
        rows.append((f"{data['classes']} classes", _plain(join_words(data["class_names"], most=30))))
    if data["skipped_images"]:
        rows.append(("skipped", f"{data['skipped_images']:,} images that could not be read"))
    rows.append(("loss, optimizer, precision", f"{flags['loss']}, {flags['optimizer']}, {run['precision']['used']}"))
    rows.append(("device", _plain(_describe_device(run))))
    if (spread := run["distribution"])["replicas"] > 1:
        workers = f"{spread['workers']} workers, " if spread["workers"] > 1 else ""
        rows.append(("distribution", f"{workers}{spread['replicas']} replicas (`--distribute={spread['kind']}`)"))
    notes = "".join(f"\n- {_plain(note)}" for note in model["notes"])
    notes = f"\n{notes}" if notes else ""
    title = f"# {_plain(model['name'])} on {_plain(data['name'])}"
    if run["exit"]["code"]:
        title += f"\n\n**The run did not finish: {_plain(run['exit']['reason'])} (exit code {run['exit']['code']}).**"
    return f"{title}\n\n{_table(('', ''), rows)}{notes}"


def _describe_device(run: Mapping[str, Any]) -> str:
    device = run["device"]
    parts = [device["name"], device["description"], *(f"{name} {value}" for name, value in device["libraries"].items())]
    return ", ".join([*parts, *(["steps compiled by XLA"] if run["jit_compile"] else [])])


def _describe_training(run: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    text = f"## What trained\n\n{run['steps']:,} steps of {run['flags']['batch_size']} examples."
    for row, stage in zip(run["phases"], stages, strict=False):
        text += (
            f" Phase `{row['name']}`, steps {row['from_step']} to {row['to_step']}, learning rate {stage.learning_rate:g} "
            f"({stage.schedule}):\n\n```\n{stage.selection.table()}\n```\n\n"
        )
    return text.strip()


def _describe_figures(run: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    final, rows = run["final"], []
    if evaluations:
        first = evaluations[0]
        start = f"at step {first.step}"
        rows.append((f"evaluation loss, {start}", _number(first.loss)))
        rows.append(("evaluation loss, at the end", _number(final["eval_loss"])))
        if final["eval_accuracy"] is not None:
            rows.append((f"evaluation accuracy, {start}", _number(first.accuracy)))
            rows.append(("evaluation accuracy, at the end", _number(final["eval_accuracy"])))
        for name in records.name_figures(evaluations[-1]):
            if not isinstance(final[name], list):
                rows.append((_plain(f"evaluation {name.removeprefix('eval_')}, at the end"), _number(final[name])))
    for key, value in final.items():
        if key.startswith("test_") and not isinstance(value, (dict, list)) and value is not None:
            rows.append((_plain(key.replace("_", " ")), _number(value)))
    for name, accuracy in final.get("test_class_accuracy", {}).items():
        rows.append((f"test accuracy of {_plain(name)}", _number(accuracy)))
    averages = "\n\nEvaluations used the averages (`--ema`), which `ema.npz` has." if run["flags"]["ema"] else ""
    return f"## Figures\n\n{_table(('', ''), rows) if rows else 'There was no evaluation.'}{averages}"


def _describe_proof(run: Mapping[str, Any]) -> str:
    proof = run["freeze_proof"]
    if proof["verified"]:
        text = f"Verified: {proof['variables']} frozen variables kept every bit in their phase."
    else:
        text = f"**Failed**: {len(proof['changed'])} frozen variables changed: {join_words(proof['changed'])}."
    return f"## Freeze proof\n\n{text}"


def _describe_cost(run: Mapping[str, Any]) -> str:
    timing, memory, versions = run["timing"], run["memory"], run["versions"]
    rows = [("time", f"{timing['total_seconds']:.0f} s, start and evaluations included")]
    if timing["step_ms"]["median"] is not None:
        rows.append(("a step", f"{timing['step_ms']['median']:.1f} ms (median)"))
    rows.append(("peak memory", format_bytes(memory["peak_rss_bytes"])))
    forecast = memory["forecast_bytes"]
    if forecast is not None:
        rows.append(("forecast", format_bytes(forecast["total"])))
    if memory.get("device_peak_bytes") is not None:
        rows.append(("peak memory of the GPU", format_bytes(memory["device_peak_bytes"])))
        rows.append(("its forecast", format_bytes(memory["device_forecast_bytes"])))
    if run["skipped_steps"]:
        rows.append(("skipped steps", f"{run['skipped_steps']} of {run['steps']}"))
    rows.append(
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if name != "deterministic"))
    )
    return f"## Time and memory\n\n{_table(('', ''), rows)}"


def _describe_use(out: pathlib.Path, run: Mapping[str, Any]) -> str:
    flags, base, folder = run["flags"], run["flags"]["weights"], shlex.quote(str(out))
    model = " ".join(
        f"--{name}={shlex.quote(flags[name])}" for name in ("model", "head", "adapt") if flags.get(name) is not None
    )
    kind = run["data"]["input_kind"]
    boxes = any(loss.kind == CENTERS for loss in parse_losses(flags["loss"]))
    predict = (
        [(f"predict {_GIVEN[kind][0]}", f"frostline predict --run={folder} {_GIVEN[kind][1]} --out=found.csv")]
        if kind
        else []
    )
    export = [("export", f"frostline export --run={folder} --format=savedmodel --out=FOLDER")]
    lines = [
        *predict,
        ("evaluate again", f"frostline evaluate --run={folder}"),
        *(export if kind and not boxes else []),  # the others are refused
        ("whole weights, in the format of the base", f"frostline apply-delta --base={shlex.quote(base)} --delta={folder}/trained.npz --out=FILE"),
        ("train on from here", f"frostline finetune {model} --weights={shlex.quote(base)}+{folder}/trained.npz --data=DATA"),
        ("repeat this run, to the same bits", f"frostline finetune --flagfile={folder}/flags.cfg --out=FOLDER"),
    ]  # fmt: skip
    shown = "\n\n".join(f"{what[0].upper()}{what[1:]}:\n\n    {command}" for what, command in lines)
    return (
        f"## How to use it\n\n`trained.npz` holds what trained, and belongs to `{base}` alone; a checkpoint in `checkpoints/` "
        f"is whole.\n\n{shown}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _plain(text: str) -> str:
    """A text from outside on one line, in which nothing is taken for Markdown or HTML."""
    line = " ".join(str(text).split())
    return "".join(f"\\{mark}" if mark in "\\`*_[]<>#|" else mark for mark in line)


def _number(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "not finite"
