"""The examples on which a trained model is evaluated: those of its run, or others in the order of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data import Part, Source
from engine.data.batch_names import label_name
from engine.data.class_names import match_names, normal_form, same_names
from engine.data.features import name_columns, order_columns, standardise
from engine.data.manifest_options import KINDS
from engine.data.part import IGNORED, ArraySpec, check_labels, number_classes
from engine.data.source import OF_FILES, find_place, find_standardise, open_undivided, uses_own_moments
from engine.data.tasks import view_part, view_task
from engine.errors import InputError
from engine.recipes.own_data import open_own
from engine.recipes.predictor import as_grey
from engine.recipes.reopen import OpenedRun
from engine.recipes.task import find_tokenizer
from engine.sizes import parse_bytes
from engine.text import join_words, nearest
from engine.training.loss_names import CENTERS

PARTS = ("eval", "test", "train", "all")


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What is evaluated.

    Attributes:
        source: the data, with labels in the order of the model's classes.
        part, name: the examples, and which part of the data they are ("eval", "test", "train" or "all").
        own: whether these are the very data of the run, by their fingerprint.
    """

    source: Source
    part: Part
    name: str
    own: bool


def open_examples(
    opened: OpenedRun,
    *,
    data: str | None = None,
    part: str | None = None,
    bad_images: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Examples:
    """Opens the data of a run, or other ones, for an evaluation.

    Args:
        data: the name of a source (``engine.open_data``); None means the run's own.
        part: one of ``PARTS``; None means the evaluation part. Of other data than the run's, it means their evaluation
            part if they have one, else their test part, else all examples.
        bad_images: "stop" or "skip"; None as the run did.
        say: called with a line on what was decided.

    Raises:
        InputError: the data are not there, have no such part, or have classes that the model does not know.
    """
    if data is None and opened.path is None:
        raise InputError("data: expected the name of a source, such as folder:DIR; no run says which")
    config = opened.config
    spec = data or config.data
    kind, place = spec.partition(":")[0], find_place(spec)
    if data is None and place is not None and not place.exists():
        raise InputError(
            f"run={opened.path}: the data of the run, {spec}, are not there; --data says where they are now, or names others"
        )
    if kind == "text" and len(opened.image_shape) == 3:
        raise InputError(f"data={spec}: these are texts, and the model takes images")
    given: dict[str, Any] = {
        "image_size": opened.image_shape[:2] if len(opened.image_shape) == 3 and kind != "py" else None,
        "bad_images": bad_images or (config.bad_images if kind in OF_FILES else "stop"),
        "parts": config.parts if kind == "folder" else "auto",
        "images": config.image_options(),
        "image_cache": parse_bytes(config.image_cache, name="image_cache"),
        "tokenizer": find_tokenizer(config.model, spec, opened.image_shape[0]) if kind == "text" else None,
        "masks": config.masks if spec.partition(":")[0] == config.data.partition(":")[0] else None,
        "say": say,
    }
    said: list[str] = []
    source, own = _open_own(opened, data, given | {"say": said.append}), True
    if source is None or (opened.data.fingerprint is not None and source.fingerprint() != opened.data.fingerprint):
        if data is None:
            say(f"data:    {spec} has changed since the run, so its own figures are not comparable")
        own = False
    if not own and data is None and uses_own_moments(spec):
        raise InputError(
            f"data={spec}: the file has changed since the run, so its features would be standardised by another mean than those "
            "that the model was trained on; standardise=FILE names the data of the run"
        )
    if source is not None:
        _check_texts(opened, source)
    if own or data is None:
        assert source is not None
        for line in said:
            say(line)
        name, chosen = part or "eval", _part(source, part or "eval", divided=True)
    else:
        source = order_columns(open_undivided(spec, **given, to_train=False), opened.data.features, say=say)
        source = _standardise(opened, source, say)
        _check_texts(opened, source)
        if opened.data.features is None and (columns := name_columns(source)):
            say(
                "data:    the names of the features that the model was trained on are not recorded, so these are taken in their "
                f"order: {join_words(columns)}"
            )
        divided = source.eval is not source.train
        decided = "eval" if divided else "test" if source.test is not None else "all"
        name, chosen = part or decided, _part(source, part or decided, divided=divided)
    if opened.loss == "softmax" and not opened.tasks and not source.classes:
        whole = source.with_classes()
        chosen, source = _part(whole, name, divided=name != "all"), whole
    say(f"data:    {source.name}, {len(chosen):,} examples ({_describe(name, own=own)})")
    _check_pixels(opened, chosen, source.name)
    fit = _fit_tasks if opened.tasks else _fit_labels
    fitted = fit(opened, source, _fit_inputs(opened, source.name, chosen), say)
    return Examples(source=source, part=fitted, name=name, own=own)


def _standardise(opened: OpenedRun, source: Source, say: Callable[[str], None]) -> Source:
    """Other data than the run's, with features scaled as those that the model was trained on; InputError if that is not known."""
    trained, asked = opened.config.data, find_standardise(source.name)
    if asked is not None and trained.partition(":")[0] in KINDS and find_standardise(trained) is None:
        raise InputError(
            f"data={source.name}: the model was trained on features as they are ({trained}); give --data without standardise"
        )
    if asked:
        return source  # by a file that the user names
    if opened.data.moments is not None:
        return standardise(source, say=say, moments=np.array(opened.data.moments))
    if uses_own_moments(source.name):
        raise InputError(
            f"data={source.name}: its features would be standardised by its own mean, not by that of the data that the model was "
            "trained on; standardise=FILE names these"
        )
    if find_standardise(trained) is not None:
        raise InputError(
            f"data={source.name}: the model was trained on standardised features, and an earlier version wrote the run, which did "
            f"not record by which mean; {source.name},standardise=FILE names the file of the run's own data"
        )
    return source


def _check_pixels(opened: OpenedRun, part: Part, name: str) -> None:
    """Raises InputError if labels are those of pixels and the model's only output is not, or the other way round."""
    if opened.data.outputs_of == "pixel" and not part.dense:
        raise InputError(f"data={name}: the model gives a class to each pixel, and these data have no masks")
    if opened.data.outputs_of == "example" and part.dense:
        raise InputError(f"data={name}: these data have masks, and the model does not give a class to each pixel")


def _check_texts(opened: OpenedRun, source: Source) -> None:
    """Raises DataError if texts became tokens by another tokenizer than those that the model was trained on."""
    if source.texts is not None and opened.data.texts is not None:
        opened.data.texts.check_tokenizer(source.texts.facts.tokenizer, source.texts.files)


def _describe(name: str, *, own: bool) -> str:
    what = "all of them" if name == "all" else {"eval": "evaluation"}.get(name, name) + " part"
    return f"{what}, of the run's own data" if own else what


def _open_own(opened: OpenedRun, asked: str | None, given: Mapping[str, Any]) -> Source | None:
    """The data divided as the run divided its own; None if those that are ``asked`` for cannot be the run's."""
    return None if opened.path is None else open_own(opened.config, opened.data, asked, given, kind=opened.loss)


def _part(source: Source, name: str, *, divided: bool) -> Part:
    """The part of this name; InputError if the source has none. ``divided`` says whether it has an evaluation part."""
    if name not in PARTS:
        raise InputError(f"part={name!r}: expected one of {', '.join(PARTS)}{nearest(name, list(PARTS))}")
    has = {"train": source.train, "eval": source.eval if divided else None, "test": source.test}
    there = [each for each, part in has.items() if part is not None and len(part)]
    if name == "all":
        if there != ["train"]:
            raise InputError(f"part=all: {source.name} is divided; expected one of {', '.join(there)}")
        return source.train
    found = has[name]
    if found is None or not len(found):
        rest = "--part=all takes all of its examples" if there == ["train"] else f"it has {join_words(there)}"
        what = "evaluation part" if name == "eval" else f"part {name}"
        raise InputError(f"part={name}: {source.name} has no {what}; {rest}")
    return found


def _fit_tasks(opened: OpenedRun, source: Source, part: Part, say: Callable[[str], None]) -> Part:
    """The part with the labels of each task in the order of the model's classes."""
    labels, columns = part.labels, dict(part.columns)
    for task in opened.tasks:
        own = _fit_labels(opened.for_task(task), view_task(source, task), view_part(part, task), say).labels
        if part.label_name == label_name(task):
            labels = own
        else:
            columns[label_name(task)] = own
    return dataclasses.replace(part, labels=labels, columns=columns)


def _fit_labels(opened: OpenedRun, source: Source, part: Part, say: Callable[[str], None]) -> Part:
    """The part with labels in the order of the model's classes."""
    loss, outputs = opened.loss, opened.data.outputs
    if loss == CENTERS:
        return _fit_boxes(opened, source, part, say)
    if (part.labels.ndim != 1 and not part.dense) or part.labels.dtype.kind == "f" or loss == "mse":
        if loss == "softmax":
            source.outputs(loss)  # which says what is wrong with the labels
        if (needed := source.outputs(loss)) != outputs:
            raise InputError(f"data={source.name}: its labels need {needed} outputs, but the model has {outputs}")
        return _fit_columns(opened, source, part, say) if part.labels.ndim == 2 else part
    classes = 2 if loss == "sigmoid" and outputs == 1 else outputs
    own = opened.class_names
    if own is None and source.named and set(source.classes) <= set(number_classes(classes)):
        own = number_classes(classes)  # the data call classes by their numbers
    if own is None or not source.named:
        if source.named and len(source.classes) != classes:
            raise InputError(
                f"data={source.name}: it has the classes {join_words(source.classes, most=20)}, but the {classes} classes of the "
                "model have no names, so which of them these are is not known; call them by their numbers, from 0"
            )
        if own is not None or source.named:
            say("data:    only the model or the data name their classes, so these are taken in their order")
        check_labels(source.name, "labels", part.labels, classes)
        return part
    if same_names(source.classes, own):
        return part
    given, known = normal_form(source.classes), normal_form(own)
    if unknown := [name for name in given if name not in known]:
        raise InputError(
            f"data={source.name}: the model knows no class {join_words(unknown, most=20)}; its classes are {join_words(own, most=20)}"
        )
    say("data:    the classes are matched with those of the model by their names")
    order = np.array(match_names(f"data={source.name}", "classes", given, known))
    if part.dense:
        table = np.full(256, IGNORED, np.uint8)
        table[: len(order)] = order
        return dataclasses.replace(part, labels=table[part.labels])
    return dataclasses.replace(part, labels=order[part.labels])


def _fit_columns(opened: OpenedRun, source: Source, part: Part, say: Callable[[str], None]) -> Part:
    """The part with the columns of its labels [m, C] in the order of the model's outputs, where both are named."""
    own, given = opened.class_names or opened.data.columns, source.columns
    if not own or not given or same_names(given, own):
        return part
    known, named = normal_form(own), normal_form(given)
    if sorted(known) != sorted(named):
        raise InputError(
            f"data={source.name}: its columns of labels are {join_words(given, most=20)}, but the outputs of the model are "
            f"{join_words(own, most=20)}"
        )
    order = match_names(f"data={source.name}", "columns of labels", own, given)
    say("data:    the columns of labels are matched with the outputs of the model by their names")
    return dataclasses.replace(part, labels=part.labels[:, order])


def _fit_boxes(opened: OpenedRun, source: Source, part: Part, say: Callable[[str], None]) -> Part:
    """The part with the classes of its boxes in the order of the model's."""
    source.outputs(opened.loss)  # which says what is wrong with labels that are not boxes
    own = opened.class_names or ()
    if same_names(source.classes, own):
        return part
    known, given = normal_form(own), normal_form(source.classes)
    if unknown := [name for name in given if name not in known]:
        raise InputError(
            f"data={source.name}: the model finds no {join_words(unknown, most=20)}; its classes are {join_words(known, most=20)}"
        )
    say("data:    the classes are matched with those of the model by their names")
    order = np.array(
        [*match_names(f"data={source.name}", "classes", given, known), -1], np.float32
    )  # the last one is not a box
    labels = part.labels.copy()
    labels[..., 0] = order[part.labels[..., 0].astype(np.int64)]
    return dataclasses.replace(part, labels=labels)


def _fit_inputs(opened: OpenedRun, data: str, part: Part) -> Part:
    """The part with its first images in colour or grey, as the model takes them; InputError if it has other inputs than the model."""
    recorded = {name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in opened.data.inputs.items()}
    taken = recorded or {part.input_name: ArraySpec(opened.image_shape, _image_dtype(opened, part))}
    if set(part.input_specs) != set(taken):
        raise InputError(
            f"data={data}: an example has {join_words(sorted(part.input_specs))}, but the model takes {join_words(sorted(taken))}"
        )
    for name, given in part.input_specs.items():
        _check_input(data, name, given, taken[name], first=name == part.input_name)
    if len(part.image_shape) != 3 or part.image_shape[2] == taken[part.input_name].shape[2]:
        return part
    return dataclasses.replace(part, images=_Recoloured(part.images, taken[part.input_name].shape[2]))


def _image_dtype(opened: OpenedRun, part: Part) -> np.dtype[Any]:
    """The dtype of the only input of a run; that of the part where it is not an image, of which older runs recorded none."""
    return np.dtype(opened.data.image_dtype) if len(opened.image_shape) == 3 else part.image_dtype


def _check_input(data: str, name: str, given: ArraySpec, taken: ArraySpec, *, first: bool) -> None:
    """Raises InputError unless the model can take an input as it is, or in another colour if it is the ``first``."""
    about = f"data={data}: input {name}: an example has"
    recoloured = first and given.is_image and taken.is_image
    if given.shape[:2] != taken.shape[:2] or (given.shape != taken.shape and not recoloured):
        way_out = f"; resize them to {taken.shape[0]}x{taken.shape[1]}" if given.is_image and taken.is_image else ""
        raise InputError(f"{about} shape {list(given.shape)}, but the model takes {list(taken.shape)}{way_out}")
    if given.shape != taken.shape and {given.shape[2], taken.shape[2]} != {1, 3}:
        raise InputError(f"{about} {given.shape[2]} channels, and the model takes {taken.shape[2]}")
    whole = (np.int32, np.int64)
    alike = given.dtype == taken.dtype or (given.is_image and taken.is_image)
    if not alike and not (given.dtype in whole and taken.dtype in whole):
        raise InputError(
            f"{about} {given.dtype}, but the model was trained on {taken.dtype}; expected the same (use astype)"
        )


class _Recoloured:
    """Images in colour as grey ones, or the other way round; of uint8 or floats."""

    def __init__(self, images: Any, channels: int) -> None:
        self._images, self._channels = images, channels
        self.shape, self.dtype = (*images.shape[:3], channels), images.dtype

    def __getitem__(self, numbers: Any) -> np.ndarray:
        found: np.ndarray = self._images[numbers]
        if self._channels == 3:
            return np.repeat(found, 3, axis=-1)
        return as_grey(found)
