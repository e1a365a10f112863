"""The flags by which predict and evaluate find a trained model: a run, or a model with its weights."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags

from engine.errors import InputError, check_range
from engine.runs.saved_flags import read_flags

from . import cli

if TYPE_CHECKING:
    from engine.recipes.reopen import OpenedRun

HELP = {
    "run": "Folder of a run (--out of finetune): its model, weights, classes, image size, preprocessing and precision.",
    "checkpoint": "Of --run: last takes its last checkpoint, also of a run that has not finished; best the best one (--keep_best); or the path of one (default: the end of the run).",
    "ema": "Of --run: use the averages that the run kept (--ema of finetune), or with --noema the last values (default: the averages if the run kept some, because these are what it evaluated).",
    "model": "Without --run: the name of a model, as for finetune.",
    "weights": "Without --run: the weights of --model, as for finetune.",
    "classes": "Without --run: the names of the outputs in their order, separated by commas; a file with a name in each line; or their number (default: the names in the file of weights).",
    "image_size": "Without --run: the pixels that images are resized to, N or HEIGHTxWIDTH (default: the size that the model is made for).",
    "loss": "Without --run: softmax, sigmoid (several labels, or one output for two classes) or mse; it says what the outputs mean (default: softmax).",
    "precision": "Without --run: float32, mixed_bfloat16, mixed_float16 or float64 (default: float32).",
    "head": "Without --run: the head of a keras: model, as for finetune.",
    "rules": "Without --run: the rules for --weights, as for finetune.",
    "batch_size": "Examples that are computed at once (default: as many as the run evaluated at once, or 64; fewer where memory is short).",
}
_OF_RUN = ("checkpoint", "ema")
_WITHOUT_RUN = ("weights", "classes", "image_size", "loss", "precision", "head", "rules")


def define(module: str) -> None:
    """Defines the flags for the program in a module, by its ``__name__``."""
    cli.define_flags(module, HELP, {"ema": bool, "batch_size": int})


def check() -> None:
    """Raises InputError unless exactly one of --run and --model is given, with flags that go with it."""
    given = flags.FLAGS
    if (given.run is None) == (given.model is None):
        raise InputError(
            "run, model: expected one of them; --run=FOLDER names a run, --model with --weights anything else"
        )
    names = _WITHOUT_RUN if given.run is not None else _OF_RUN
    if wrong := [name for name in names if given[name].value is not None]:
        other = "the run says it" if given.run is not None else "it needs --run"
        raise InputError(f"{wrong[0]}={given[wrong[0]].value}: {other}; leave it out")
    check_range("batch_size", given.batch_size, 1)


def model_name() -> str:
    """The name of the model, as far as it is known without opening anything; "" if it is not."""
    if flags.FLAGS.model is not None:
        return str(flags.FLAGS.model)
    found = read_flags(pathlib.Path(flags.FLAGS.run)) if pathlib.Path(flags.FLAGS.run).is_dir() else None
    return str((found or {}).get("model", ""))


def open_model(say: Callable[[str], None], *, features_below: str | None = None) -> OpenedRun:
    """Opens what the flags name, and says what it is."""
    given = flags.FLAGS
    if given.run is not None:
        from engine.recipes.reopen import open_run
        from engine.runs.saved_flags import choose_averages

        averages = choose_averages(given.run, given.ema)
        opened = open_run(given.run, averages=averages, checkpoint=given.checkpoint, say=say)
    else:
        from engine.recipes import opening

        opened = opening.open_model(
            given.model,
            given.weights or "auto",
            classes=None if given.classes is None else opening.parse_classes(given.classes),
            image_size=given.image_size,
            loss=given.loss or "softmax",
            precision=given.precision or "float32",
            head=given.head,
            rules=given.rules,
            features_below=features_below,
        )
    names = opened.class_names
    what = f"{len(names)} classes" if names else f"{opened.data.outputs} outputs"
    say(
        f"model:   {opened.config.model}, {opened.variables.parameters:,} parameters; {what}; {_describe_input(opened)}"
    )
    for note in opened.model.notes:
        say(f"         {note}")
    say(
        f"weights: {opened.weights}"
        + ("; --noema takes the last values" if opened.averaged and given.ema is None else "")
    )
    return opened


def _describe_input(opened: OpenedRun) -> str:
    if len(opened.image_shape) != 3:
        return f"examples of shape {list(opened.image_shape)}"
    height, width, channels = opened.image_shape
    return f"images {height}x{width}, {'colour' if channels == 3 else 'grey'}"
