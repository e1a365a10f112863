"""Export a trained model for a server, a phone, Keras, PyTorch or ONNX, checked against the model on real examples.

--out gets the export and export.json: what it is, how to use it, its bytes, and how far it is from the model. If the
check fails, nothing is written. docs/export.md shows how to use each format.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from engine.export.config import FORMATS, NAMES, QUANTIZE, ExportConfig

from . import cli

F = flags.FLAGS

HELP = {
    "run": "The run directory, as finetune leaves it (its --out).",
    "format": "savedmodel (serves without Frostline: takes images or JPEG and PNG files, tokens of texts, or vectors; knows the class names), tflite (phones), keras (.keras, for models that came from Keras), safetensors (a built-in ViT under the names of timm or Hugging Face, or an encoder of texts under those of transformers), onnx (where tf2onnx is installed).",
    "out": "Folder to create; it must not exist (default: RUN/export/FORMAT).",
    "ema": "Export the averages that the run kept (--ema of finetune), or with --noema the last values (default: the averages if the run kept some, because these are what it evaluated).",
    "checkpoint": "last, best, or a checkpoint of the run: export it in place of the end of the run, also if the run has not finished.",
    "data": "Where the data of the run are now, if they have moved; examples of them check the export.",
    "quantize": "Of a TFLite model: none, float16 (weights in 16 bits), dynamic (weights in 8 bits) or int8 (weights and activations in 8 bits).",
    "calibration_examples": "Training examples from which --quantize=int8 takes the ranges of activations.",
    "max_accuracy_loss": "A quantised model that loses more accuracy (0.01 is one point in a hundred) is written only with --yes.",
    "yes": "Write a quantised model whatever accuracy it loses.",
    "rules": "Names for --format=safetensors: vit_timm or vit_hf of a ViT, encoder_hf of an encoder of texts (default: vit_timm, or encoder_hf for bert:).",
    "updatable": "Filter, as for finetune's --train, of the variables of a TFLite model that a device can replace by load_delta, such as @head.",
    "delta_for": "The folder of an exported SavedModel: write only the variables that turn it into this run, a file for push-delta.",
}
_CHOICES = {"format": FORMATS, "quantize": QUANTIZE, "rules": NAMES}

cli.define_flags(__name__, HELP, cli.field_defaults(ExportConfig) | {"run": str}, choices=_CHOICES)


def main() -> int:
    from engine.errors import InputError

    if not F.run:
        raise InputError("run=None: expected --run=FOLDER, the directory of a run")
    config = ExportConfig(**{name: F[name].value for name in HELP})
    cli.import_tensorflow()
    from engine.export.checking import ExportError
    from engine.export.run import export_run

    try:
        result = export_run(config, say=print)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return cli.FAILED
    _print(result)
    return cli.DONE


def _print(result: Any) -> None:
    from engine.text import table

    record, found = result.record, result.comparison
    if found is not None:
        rows = [("", "model", "export"), ("bytes", *(f"{record['bytes'][key]:,}" for key in ("model", "export")))]
        for task, each in (found.tasks or {"": found}).items():
            if each.accuracy is not None:
                name = f"accuracy of {task}" if task else "accuracy"
                rows.append((name, f"{each.model_accuracy:.4f}", f"{each.accuracy:.4f}"))
        if found.milliseconds is not None:
            rows.append(
                (
                    f"ms per {'image' if 'images' in record else 'example'}",
                    f"{found.model_milliseconds:.2f}",
                    f"{found.milliseconds:.2f}",
                )
            )
        print(table(rows, right={1, 2}))
        print(f"checked on {found.examples} examples:{'' if found.tasks else ' ' + _describe(found)}")
        for task, each in found.tasks.items():
            print(f"  {task}: {_describe(each)}")
    print(f"written: {result.out}")


def _describe(found: Any) -> str:
    """How far an output of the export is from the model's."""
    agreement = "" if found.agreement is None else f", the same class for {found.agreement:.2%}"
    return f"the largest difference of an output is {found.largest_difference:.3g} ({'outputs up to ' if found.scale > 1 else 'outputs of at most '}{found.scale:.3g}){agreement}"


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
