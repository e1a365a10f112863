"""Opens the directory of a run as the model that the run trained, without its data."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import models
from engine.data import Normalise
from engine.data.class_names import read_class_names, same_names
from engine.data.image_options import make_form
from engine.data.part import ArraySpec
from engine.errors import InputError
from engine.files import PathLike
from engine.models.adapters.attach import attach_requested, request_adapters
from engine.models.spec import Model
from engine.models.weights import LoadedWeights, load_as_it_is, load_for_classes, load_in_order
from engine.porting.deltas.onto import FORCE
from engine.reading import read_file
from engine.recipes.config import FinetuneConfig
from engine.recipes.encoders import find_encoder
from engine.recipes.end_of_run import choose_checkpoint
from engine.recipes.one_output import check_single, view_output
from engine.recipes.predictor import Predictor
from engine.runs.records import RUN_FORMAT
from engine.runs.saved_flags import DataFacts, read_data_facts, read_flags
from engine.selection.variables import ModelVariables, name_variables
from engine.text import join_words, nearest
from engine.training import checkpoint as checkpoints
from engine.training import precision as precisions
from engine.training.checkpoint import CheckpointError, RunState
from engine.training.loss_names import CENTERS, output_kind
from engine.training.precision import Precision

_LARGEST = 1 << 28  # bytes of run.json


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedRun:
    """A trained model, with everything that using it requires: made by ``open_run``.

    Attributes:
        path: the run directory; None for a model that no run has made (engine.recipes.opening).
        config: the flags of the run.
        run: the content of its run.json; empty for a run that has not finished.
        model, variables: the model, whose network has the run's weights, and every variable of it, named.
        data: what the run's data decided: the shape of images, the outputs and the names of the classes.
        numbers: the dtypes of variables and computation.
        weights: a line for people: where the weights came from.
        step: the number of steps after which the run had these weights; None for a model that no run has made.
        averaged: whether the weights are the run's averages (``ema``).
    """

    path: pathlib.Path | None
    config: FinetuneConfig
    run: Mapping[str, Any]
    model: Model
    variables: ModelVariables
    data: DataFacts
    numbers: Precision
    weights: str
    step: int | None = None
    averaged: bool = False

    @property
    def network(self) -> Any:
        """The network: ``network(images, training=False)`` -> logits [B, outputs], for images that ``normalise`` made."""
        return self.model.network

    @property
    def loss(self) -> str:
        """What the outputs are, by the loss that it was trained with: "softmax", "sigmoid" or "mse"."""
        return self.data.kind or output_kind(self.config.loss, classes=self.data.class_names is not None)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its outputs; none if it has one, which needs no name."""
        return tuple(task.name for task in self.data.tasks)

    def for_task(self, task: str) -> OpenedRun:
        """The model with one of its outputs alone, as one that was trained for it; InputError if it has none of this name."""
        found: OpenedRun = view_output(self, task)
        return found

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of the outputs; None if the data named none."""
        return self.data.class_names

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the images that ``normalise`` takes."""
        return self.data.image_shape

    @property
    def normalise(self) -> Normalise:
        """Prepares images exactly as the run's evaluation does.

        It takes uint8 or float in [0, 1], [B, height, width, channels] of ``image_shape``, and returns float32.
        """
        images = self.data.images
        return self.model.normalise if images is None else models.images_as(images, self.image_shape)

    def predictor(self, *, batch_size: int | None = None, inputs: Mapping[str, ArraySpec] | None = None) -> Predictor:
        """The model as a function of what it was trained on, in batches of at most ``batch_size`` (default: as the run evaluated).

        Those are images, a list of texts or vectors (``Predictor.__call__``; docs/predict.md has examples). ``inputs`` are those of data that are not one
        image (``Part.input_specs``), if not the run's.

        Raises InputError if it has several outputs.
        """
        check_single(self, "a predictor")
        encoder = find_encoder(self.path, self.config, self.data, self.loss)
        return Predictor(
            network=self.network,
            normalise=self.normalise,
            image_shape=self.image_shape,
            loss=self.loss,
            class_names=self.class_names or self.data.columns,
            batch_size=self.data.eval_size if batch_size is None else batch_size,
            form=make_form(self.image_shape, self.data.image_dtype, self.config.image_options()),
            inputs=inputs or ({} if encoder is None else encoder.specs),
            encoder=encoder,
        )


def open_run(
    path: PathLike,
    *,
    averages: bool = False,
    checkpoint: PathLike | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> OpenedRun:
    """Opens a run directory as a model: the run's last weights, bit for bit. Its data are not needed.

    Args:
        path: the run directory, as ``finetune`` leaves it.
        averages: whether to take the averages (``FinetuneConfig.ema``) in place of the last values.
        checkpoint: None takes the end of a run that is done. "last" takes the last checkpoint, also of a run that has not
            finished; "best" the best one (``keep_best``); any other text is the path of a checkpoint of this run.
        say: called with a line where something is left out or looks wrong.

    The weights are read from the last checkpoint. Where the run has none any more, they are those that the run began
    with (``FinetuneConfig.weights``), and what it trained (trained.npz) on top.

    Raises:
        InputError: the folder holds no run, one of another version, or one that has not finished; files are damaged or
            missing; or the run kept no averages.

    Example:
        >>> import tempfile
        >>> from engine import FinetuneConfig, finetune
        >>> from engine.recipes.reopen import open_run
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     given = {"model": "cnn:mini", "weights": "none", "train": "@head", "train_examples": 64}
        ...     result = finetune(FinetuneConfig(**given, steps=2, out=f"{folder}/run"))
        ...     opened = open_run(result.out)
        >>> opened.class_names[:2], opened.image_shape
        (('T-shirt', 'Trouser'), (28, 28, 1))
    """
    folder = pathlib.Path(path)
    _check_folder(folder)
    run = _read_run(folder, tolerant=checkpoint is not None)
    config, data = _read_config(folder, run), _read_data(folder)
    file = choose_checkpoint(folder, run, checkpoint)
    numbers = precisions.parse(config.precision)
    model = build_run_model(config, data, numbers)
    opened = OpenedRun(
        path=folder,
        config=config,
        run=run,
        model=model,
        variables=name_variables(model.network),
        data=data,
        numbers=numbers,
        weights="",
        averaged=averages,
    )
    return _with_weights(opened, file, required=checkpoint is not None, say=say)


def build_run_model(config: FinetuneConfig, data: DataFacts, numbers: Precision) -> Model:
    """The model of a run with its initial values, in the dtypes of a precision.

    Its adapters are attached once weights are loaded (``engine.load_weights``), or by ``attach_requested``.
    """
    kind = data.kind or output_kind(config.loss, classes=data.class_names is not None)
    model = models.build_model(
        config.model,
        image_shape=data.image_shape,
        outputs=data.outputs,
        outputs_of=data.outputs_of,
        head=config.head,
        logits=[task.name for task in data.tasks if task.kind != "mse"] if data.tasks else kind != "mse",
        tasks={task.name: task.outputs for task in data.tasks},
        inputs={name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in data.inputs.items()},
        graph=config.graph_options(),
        seed=config.seed,
        dtype=numbers.variables,
        compute=numbers.compute,
    )
    request_adapters(model, config.adapt, seed=config.seed)
    return model


def _with_weights(
    opened: OpenedRun, file: pathlib.Path | None, *, required: bool, say: Callable[[str], None]
) -> OpenedRun:
    """The opened run with its weights: from a checkpoint, or from the base and what was trained."""
    if file is not None:
        try:
            attach_requested(opened.model)
            return _load_checkpoint(_named(opened), file)
        except CheckpointError as error:
            assert opened.path is not None
            if required or not (opened.path / _delta_name(opened)).is_file():
                raise
            say(f"checkpoint {error}; taking the weights that the run began with, and {_delta_name(opened)}")
            if opened.model.adapters is not None:  # a base is loaded before they are attached
                opened = dataclasses.replace(opened, model=build_run_model(opened.config, opened.data, opened.numbers))
    return _named(_load_delta(opened))


def _named(opened: OpenedRun) -> OpenedRun:
    """The opened run with the variables that its network has now."""
    return dataclasses.replace(opened, variables=name_variables(opened.network))


def _check_folder(folder: pathlib.Path) -> None:
    """Raises InputError unless a folder looks like a run's."""
    if not folder.exists():
        near = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
        raise InputError(f"run={folder}: there is no such folder{nearest(folder.name, near)}")
    if not folder.is_dir():
        raise InputError(f"run={folder}: it is a file; expected the folder of a run, which finetune names --out")
    held = ("run.json", "flags.json", "checkpoints", "trained.npz")
    if not any((folder / name).exists() for name in held):
        below = sorted(path.parent.name for path in folder.glob("*/run.json"))
        hint = f"; it has folders of runs: {join_words(below)}" if below else ""
        raise InputError(f"run={folder}: the folder does not hold a run (none of {', '.join(held)}){hint}")


def _read_run(folder: pathlib.Path, *, tolerant: bool) -> dict[str, Any]:
    """The content of run.json; empty if there is none, or it is damaged and ``tolerant`` is True.

    Raises InputError if it is damaged, or another version wrote it.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(read_file(path, _LARGEST))
        number, code = found.get("format"), found.get("exit")
        if number == RUN_FORMAT:
            int(code["code"]), int(found["steps"]), str(code["reason"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if tolerant:
            return {}
        raise InputError(f"{path}: damaged ({error}); --checkpoint=last takes the last checkpoint") from None
    if number != RUN_FORMAT:
        raise InputError(
            f"run={folder}: its run.json has {'no format' if number is None else f'format {number}'}, so "
            f"{'Frostline 0.1' if number is None else 'another version'} wrote the run; this version reads format {RUN_FORMAT}. "
            "Its checkpoints are weights files: with --model, --weights=RUN/checkpoints/NAME.npz takes one"
        )
    return dict(found)


def _read_config(folder: pathlib.Path, run: Mapping[str, Any]) -> FinetuneConfig:
    """The flags of the run; raises InputError if this version has other flags."""
    flags = read_flags(folder, decided=True) or run.get("flags")
    if not isinstance(flags, Mapping):
        raise InputError(f"run={folder}: neither flags.json nor a readable checkpoint says what the run was")
    if unknown := sorted(set(flags) - {field.name for field in dataclasses.fields(FinetuneConfig)}):
        raise InputError(
            f"run={folder}: {', '.join(unknown)}: this version has no such flag; another one wrote the run"
        )
    return FinetuneConfig(**dict(flags) | {"out": str(folder), "resume": False, "dry_run": False})


def _read_data(folder: pathlib.Path) -> DataFacts:
    """What the data of the run decided; raises InputError if the run, of an earlier version, did not record it."""
    found = read_data_facts(folder)
    if found is None:
        raise InputError(
            f"run={folder}: an earlier version wrote the run, and did not record the shape of its images and its classes; "
            f"--resume --out={folder} with the data in their place records them, or, with --model, "
            "--weights=RUN/checkpoints/NAME.npz and --classes use a checkpoint without the run"
        )
    return found


def _load_checkpoint(opened: OpenedRun, file: pathlib.Path) -> OpenedRun:
    """Assigns the values of a checkpoint to all variables."""
    read = checkpoints.read(file, keep=lambda name: not name.startswith("optimizer/"))
    state = RunState.read(read)
    _check_classes(opened, file)
    checkpoints.restore(read, opened.variables)
    text = f"{file}, after {state.loop.step:,} steps"
    if opened.averaged:
        averages = {name.removeprefix("ema/"): array for name, array in read.arrays.items() if name.startswith("ema/")}
        _check_averages(opened, bool(averages))
        _assign(opened, file, averages)
        text = f"averages in {text}"
    data = dataclasses.replace(opened.data, images=state.images)
    return dataclasses.replace(opened, data=data, weights=text, step=state.loop.step)


def _check_classes(opened: OpenedRun, file: pathlib.Path) -> None:
    """Raises InputError if a weights file names other classes than the run."""
    given, own = read_class_names(file), opened.class_names
    if given is not None and own is not None and not same_names(given, own):
        raise InputError(f"{file}: it is for {join_words(given)}, and the run for {join_words(own)}")


def find_delta(opened: OpenedRun) -> pathlib.Path | None:
    """The delta that the run left of these weights (last values or averages); None if there is none."""
    if opened.path is None or not (opened.path / _delta_name(opened)).is_file():
        return None
    return opened.path / _delta_name(opened)


def load_run_weights(opened: OpenedRun, weights: str) -> LoadedWeights:
    """Loads weights into the model of a run as the run loaded its own; raises InputError if they do not fit."""
    config = opened.config
    given: dict[str, Any] = {
        "rules": config.rules, "image_shape": opened.image_shape, "force_base": config.force_base
    }  # fmt: skip
    if opened.tasks or opened.loss == "mse":
        return load_as_it_is(opened.model, weights, **given)
    if opened.loss == CENTERS:
        return load_in_order(opened.model, weights, opened.class_names or (), **given)
    return load_for_classes(opened.model, weights, opened.class_names or (), **given)


def _delta_name(opened: OpenedRun) -> str:
    return "ema.npz" if opened.averaged else "trained.npz"


def _check_averages(opened: OpenedRun, kept: bool) -> None:
    if not kept:
        raise InputError(f"run={opened.path}: the run kept no averages; it trained without --ema")


def _load_delta(opened: OpenedRun) -> OpenedRun:
    """Loads the weights that the run began with, and puts what it trained on top."""
    assert opened.path is not None
    config, name = opened.config, _delta_name(opened)
    delta = opened.path / name
    if opened.averaged:
        _check_averages(opened, delta.is_file() or config.ema is not None)
    if not delta.is_file():
        raise InputError(
            f"run={opened.path}: it has neither the checkpoint of its last step nor {name}; --checkpoint=last takes another one"
        )
    _check_classes(opened, delta)
    try:
        loaded = load_run_weights(opened, f"{config.weights}+{delta}")
    except InputError as error:
        raise InputError(
            f"run={opened.path}: its last checkpoint is gone, and {name} holds only what the run trained. The rest comes "
            f"from the weights that it began with, --weights={config.weights}: {str(error).replace(f'; {FORCE}', '')}"
        ) from None
    text = f"{delta} on {loaded.text.split(';')[0]}"
    return dataclasses.replace(opened, weights=text, step=int(opened.run["steps"]))


def _assign(opened: OpenedRun, file: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Assigns arrays to the variables of their paths; InputError if one does not fit. Nothing is assigned then."""
    own = opened.variables.by_path()
    for path, array in arrays.items():
        if path not in own:
            raise InputError(f"{file}: {path}: the model has no such variable{nearest(path, list(own))}")
        variable = own[path].variable
        if (tuple(array.shape), array.dtype) != (tuple(variable.shape), variable.dtype.as_numpy_dtype):
            raise InputError(
                f"{file}: {path} is {array.dtype.name} {list(array.shape)}; the model's is {variable.dtype.name} "
                f"{list(variable.shape)}"
            )
    for path, array in arrays.items():
        own[path].variable.assign(array)
    opened.variables.refresh()
