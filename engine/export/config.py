"""What an export is asked for: one field for each flag of ``export``, checked without TensorFlow."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

from engine.errors import InputError, check_range
from engine.text import nearest

FORMATS = ("savedmodel", "tflite", "keras", "safetensors", "onnx")
QUANTIZE = ("none", "float16", "dynamic", "int8")
ENCODER = "encoder_hf"  # of an encoder of texts, BERT's or DistilBERT's
NAMES = ("vit_timm", "vit_hf", ENCODER)  # by which safetensors are written


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """An export of a run; give it to ``export_run``.

    Attributes:
        run: the run directory.
        format: one of FORMATS.
        out: the folder to create; None means RUN/export/FORMAT, with the kind of quantisation.
        ema: True takes the averages, False the last values; None takes the averages if the run kept some, because these
            are what it evaluated.
        checkpoint: "last", "best" or a checkpoint of the run; None takes the end of a run that is done.
        data: where the run's data are now; None means where they were.
        quantize: of a TFLite model: one of QUANTIZE.
        calibration_examples: the number of training examples from which int8 takes the ranges of activations.
        max_accuracy_loss: a quantised model that loses more accuracy, from 0 to 1, is written only with ``yes``.
        rules: for safetensors: one of NAMES; None takes vit_timm for a ViT, and encoder_hf for an encoder of texts.
        updatable: for TFLite: a filter of the variables that a device can replace.
        delta_for: an exported SavedModel: only the variables that change it into this run are written.

    Raises:
        InputError: a field is not valid, or does not go with the format.
    """

    run: str
    format: str = "savedmodel"
    out: str | None = None
    ema: bool | None = None
    checkpoint: str | None = None
    data: str | None = None
    quantize: str = "none"
    calibration_examples: int = 200
    max_accuracy_loss: float = 0.01
    yes: bool = False
    rules: str | None = None
    updatable: str | None = None
    delta_for: str | None = None

    def __post_init__(self) -> None:
        for name in ("run", "out", "delta_for"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        for name, known in (("format", FORMATS), ("quantize", QUANTIZE), ("rules", NAMES)):
            value = getattr(self, name)
            if value not in known and (name, value) != ("rules", None):
                raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}{nearest(str(value), known)}")
        check_range("calibration_examples", self.calibration_examples, 1)
        check_range("max_accuracy_loss", self.max_accuracy_loss, 0.0, 1.0)
        if self.format != "tflite":
            for name, default in (("quantize", "none"), ("updatable", None)):
                if getattr(self, name) != default:
                    raise InputError(
                        f"{name}={getattr(self, name)}: it applies to --format=tflite, not to {self.format}"
                    )
        if self.rules is not None and self.format != "safetensors":
            raise InputError(f"rules={self.rules}: it applies to --format=safetensors, not to {self.format}")
        if self.delta_for is not None and self.format != "savedmodel":
            raise InputError(f"delta_for={self.delta_for}: it applies to --format=savedmodel, not to {self.format}")
        if self.updatable is not None and self.quantize == "int8":
            raise InputError(
                f"updatable={self.updatable}, quantize=int8: an int8 model has no variables; updatable models are none, "
                "float16 or dynamic"
            )

    @property
    def place(self) -> pathlib.Path:
        """The folder to create, or the file for ``delta_for``."""
        if self.out is not None:
            return pathlib.Path(self.out)
        if self.delta_for is not None:
            return pathlib.Path(self.run) / "export" / "delta.npz"
        kind = self.format if self.quantize == "none" else f"{self.format}-{self.quantize}"
        kind = kind if self.updatable is None else f"{kind}-updatable"
        kind = kind if self.format != "safetensors" else f"{kind}-{(self.rules or NAMES[0]).rpartition('_')[2]}"
        return pathlib.Path(self.run) / "export" / kind


def side_files(out: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The script and the arrays that belong to a safetensors file."""
    return out.with_name(f"{out.stem}_parity.py"), out.with_name(f"{out.stem}_parity.npz")
