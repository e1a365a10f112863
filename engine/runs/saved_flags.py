"""The flags of a run, and what it found its data to be, kept in its folder from the start.

So a resume need not be told them again, and the model can be used without the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from engine.data.class_names import Names
from engine.data.text_encoder import TextFacts
from engine.errors import InputError
from engine.files import FileError, Npz, PathLike, write_json
from engine.reading import read_file
from engine.training.checkpoint_names import list_checkpoints
from engine.training.loss_names import OutputsOf

NAME = "flags.json"
FINGERPRINT = "data (SHA-256)"  # among the settings of a run: the digest of its data
CLASS_WEIGHTS = "class_weights (values)"  # among them: those that the loss uses, where it uses some
SAMPLE_WEIGHTS = (
    "sample_weights (SHA-256)"  # among them: the digest of the weights of training examples, where there are some
)
OF_DATA = (FINGERPRINT, CLASS_WEIGHTS, SAMPLE_WEIGHTS)  # settings that are found when the data are opened
_FORMAT = 1
_LARGEST = 1 << 24  # bytes
_HERE_ONLY = ("out", "resume")  # about a call, not about the run


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What the data decide about one of several outputs of a model.

    Attributes:
        name: the task.
        kind: what the output means: "softmax", "sigmoid" or "mse".
        outputs, class_names, columns: as those of ``DataFacts``.
    """

    name: str
    kind: str
    outputs: int
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...] | None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> TaskFacts:
        """The facts from JSON values; raises ValueError, LookupError or TypeError if they are anything else."""
        name, kind = given["name"], given["kind"]
        if not isinstance(kind, str) or not isinstance(name, str):
            raise TypeError("the name and the kind of a task must be texts")
        names, columns = _read_names(given, "class_names"), _read_names(given, "columns")
        return cls(name=name, kind=kind, outputs=int(given["outputs"]), class_names=names, columns=columns)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the data of a run decide about its model.

    Attributes:
        image_shape: (height, width, channels) of the images, before they are normalised; the shape of an example of another
            first input.
        outputs: the number of outputs of the network.
        class_names: the names of the classes, in the order of the outputs; None if there are none.
        columns: the names of the columns of targets, for the loss mse; None if there are none.
        images: the preprocessing that the run's first weights expect; None for that of the model.
        eval_size: the number of examples that the run evaluates at once.
        fingerprint: the digest of the training and evaluation data; None if the run did not record it.
        image_dtype: the dtype of the images in the data.
        kind: what the only output means, "softmax", "sigmoid" or "mse"; None if the run did not record it.
        outputs_of: what has outputs of its own (``engine.build_model``); None for any, or if the run did not record it.
        tasks: where the network has outputs by name, what each is; ``outputs`` is then the number of all.
        class_weights: the weights of classes in the loss, by output ("" for the only one).
        inputs: the shape of an example and the dtype of each input, where there are several, or one that is not an image.
        features: the names of the columns of features, in the order of the input; () if there are none, or they have no
            names, and None if the run did not record it.
        moments: where features were standardised, the mean of each and its deviation; None if they were not, or the run did
            not record it.
        texts: how texts became tokens; None if there are none, or the run did not record it.
    """

    image_shape: tuple[int, ...]
    outputs: int
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    images: str | None
    eval_size: int
    fingerprint: str | None
    image_dtype: str = "uint8"
    kind: str | None = None
    outputs_of: OutputsOf | None = None
    tasks: tuple[TaskFacts, ...] = ()
    class_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    inputs: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    features: tuple[str, ...] | None = None
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    texts: TextFacts | None = None

    @property
    def output_names(self) -> Names | None:
        """The names of the classes, by task where there are several outputs; what weights files keep."""
        named = {task.name: task.class_names for task in self.tasks if task.class_names}
        return named or self.class_names

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> DataFacts:
        """The facts from JSON values; raises ValueError or TypeError if they are anything else."""
        shape = tuple(map(int, given["image_shape"]))
        if not 1 <= len(shape) <= 4:
            raise ValueError("expected the shape of an example")
        names, columns = _read_names(given, "class_names"), _read_names(given, "columns")
        images, fingerprint, kind = given["images"], given["fingerprint"], given.get("kind")
        if not all(text is None or isinstance(text, str) for text in (images, fingerprint, kind)):
            raise TypeError("names and digests must be texts")
        found = given.get("outputs_of")
        if found not in (None, *get_args(OutputsOf)):
            raise ValueError(f"outputs_of is {found!r}")
        weights = {str(name): tuple(map(float, each)) for name, each in given.get("class_weights", {}).items()}
        return cls(
            image_shape=shape,
            outputs=int(given["outputs"]),
            class_names=names,
            columns=columns,
            images=images,
            eval_size=int(given["eval_size"]),
            fingerprint=fingerprint,
            image_dtype=str(given.get("image_dtype", "uint8")),
            kind=kind,
            outputs_of=found,
            tasks=tuple(map(TaskFacts.read, given.get("tasks", ()))),
            class_weights=weights,
            inputs={
                str(name): (tuple(map(int, shape)), str(dtype))
                for name, (shape, dtype) in given.get("inputs", {}).items()
            },
            features=_read_names({"features": None} | dict(given), "features"),
            moments=_read_moments(given.get("moments")),
            texts=None if given.get("texts") is None else TextFacts.read(given["texts"]),
        )


def _read_moments(given: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The moments from JSON values; raises ValueError or TypeError if they are anything else."""
    if given is None:
        return None
    mean, deviation = (tuple(map(float, each)) for each in given)
    if len(mean) != len(deviation):
        raise ValueError("expected as many means as deviations")
    return mean, deviation


def _read_names(given: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """The names under a key; raises TypeError if they are not texts."""
    names = None if given[key] is None else tuple(given[key])
    if not all(isinstance(name, str) for name in names or ()):
        raise TypeError(f"{key} must be texts")
    return names


def write_flags(
    out: pathlib.Path, flags: Mapping[str, Any], *, decided: Mapping[str, Any] = {}, data: DataFacts | None = None
) -> None:
    """Writes the flags of a run, as JSON values, and what its data are into its folder.

    ``decided`` are the values that were decided for flags that left it to the run.
    """
    kept = {name: value for name, value in flags.items() if name not in _HERE_ONLY}
    facts = {} if data is None else {"data": dataclasses.asdict(data)}
    write_json(out / NAME, {"format": _FORMAT, "flags": kept, "decided": dict(decided), **facts})


def read_data_facts(out: pathlib.Path) -> DataFacts | None:
    """What the data of the run in a folder decided; None if the run did not record it. Raises InputError for damage."""
    path = out / NAME
    if not path.is_file():
        return None
    with _naming_damage(path):
        found = json.loads(read_file(path, _LARGEST))
        return DataFacts.read(found["data"]) if "data" in found else None


def read_flags(out: pathlib.Path, *, decided: bool = False) -> dict[str, Any] | None:
    """The flags of the run in a folder; None if it holds none. ``decided`` gives what was decided in place of "auto".

    A run of an earlier version has no file for them; the settings in its checkpoints are those that decide its course.
    Raises InputError if the file cannot be read.
    """
    path = out / NAME
    if path.is_file():
        with _naming_damage(path):
            found = json.loads(read_file(path, _LARGEST))
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']!r}; expected {_FORMAT}")
            return {str(name): value for name, value in found["flags"].items()} | (
                {str(name): value for name, value in found.get("decided", {}).items()} if decided else {}
            )
    for each in list_checkpoints(out / "checkpoints"):
        try:
            with Npz(each) as npz:
                body = json.loads(json.loads(npz.text("state.json"))["body"])
            return {name: value for name, value in body["state"]["settings"].items() if name not in OF_DATA}
        except (FileError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # the resume itself says of a damaged checkpoint that it is
    return None


def choose_averages(path: PathLike, asked: bool | None) -> bool:
    """Whether to take the averages of the run in a folder: as asked, or, with None, if it kept some.

    The averages of such a run are what it evaluated. False if nothing is asked and the folder holds no run.
    """
    if asked is not None:
        return asked
    folder = pathlib.Path(path)
    flags = read_flags(folder) if folder.is_dir() else None
    return (flags or {}).get("ema") is not None


@contextlib.contextmanager
def _naming_damage(path: pathlib.Path) -> Iterator[None]:
    """Makes whatever damaged JSON raises an InputError that names the file."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or of another version ({error}); delete it and give the flags") from None


def list_contradictions(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a run and those of its resume, a line each.

    Data with the same fingerprint are the same wherever they lie.
    """
    lines = []
    for name in dict.fromkeys((*saved, *now)):
        one, other = saved.get(name), now.get(name)
        if one == other or (name == "data" and saved.get(FINGERPRINT) == now.get(FINGERPRINT) is not None):
            continue
        what = f"{name}, so the data have changed" if name == FINGERPRINT else f"--{name}"
        lines.append(f"  {what}: {one!r} in the checkpoint, {other!r} now")
    return lines
