"""Opens a model by its name and a file of weights, without a run, as something to predict with."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine import data as sources
from engine import models
from engine.data.class_names import read_class_names, same_names
from engine.digests import digest
from engine.errors import InputError
from engine.files import PathLike
from engine.models.adapters.attach import request_adapters
from engine.models.spec import SAVED, Model
from engine.models.weights import LoadedWeights, load_as_it_is
from engine.porting import PortError
from engine.porting.deltas import adapters
from engine.porting.deltas.chain import WORDS, parse_chain
from engine.reading import read_file
from engine.recipes.config import FinetuneConfig
from engine.recipes.reopen import OpenedRun
from engine.runs.saved_flags import DataFacts
from engine.selection.selection import matching_paths
from engine.selection.variables import name_variables
from engine.text import join_some, join_words
from engine.training import precision as precisions
from engine.training.loss_names import CENTERS

_EVALUATED = 64  # examples at once, as a run evaluates at least


def open_model(
    model: str,
    weights: PathLike = "auto",
    *,
    classes: Sequence[str] | int | None = None,
    image_size: str | int | tuple[int, int] | None = None,
    loss: str = "softmax",
    precision: str = "float32",
    head: str | None = None,
    rules: PathLike | None = None,
    features_below: str | None = None,
    graph: Mapping[str, str] | None = None,
) -> OpenedRun:
    """Opens a model that was trained elsewhere, as ``open_run`` opens one that a run trained.

    Args:
        model, weights, head, rules, precision, loss: as the flags of ``finetune``; they must name weights for all variables.
        classes: the names of the outputs, or their number; None takes them from the file of weights, or from the model.
        image_size: (height, width) of the images, N for both, or a text; None takes that for which the model is made.
        graph: for ``graph:PATH``, as in ``engine.build_model``.
        features_below: a filter of variables that need no weights, because only features below them are asked for.

    Raises:
        InputError: something does not exist or does not fit, or variables would keep random values.
    """
    names = _choose_names(weights, classes)
    options: dict[str, Any] = dict(graph or {})
    config = FinetuneConfig(
        model=model, weights=str(weights), head=head, rules=None if rules is None else str(rules), loss=loss,
        precision=precision, **options,
    )  # fmt: skip
    if config.losses()[0].name:
        raise InputError(f"loss={loss!r}: it names outputs, but a model that no run has trained is used for one output")
    if config.losses()[0].kind == CENTERS:
        raise InputError(
            f"loss={loss}: the boxes of a detector need what its run recorded; --run=RUN names the run that trained it"
        )
    size = sources.check_image_size(image_size) or models.default_image_size(model)
    outputs = _count_outputs(model, head, names)
    built, loaded, shape = _build(config, size, outputs)
    variables = name_variables(built.network)
    above = frozenset() if features_below is None else matching_paths(variables, features_below)
    _check_random(config, built, loaded[1], above)
    named = None if names is None or isinstance(names, int) else names
    if named is not None and built.outputs != (1 if loss == "sigmoid" and len(named) == 2 else len(named)):
        raise InputError(
            f"classes: {len(named)} names ({join_words(named)}), but the model has {built.outputs} outputs"
        )
    facts = DataFacts(
        image_shape=shape,
        outputs=built.outputs,
        class_names=None if loss == "mse" else named,
        columns=named if loss == "mse" else None,
        images=loaded[0].images,
        eval_size=_EVALUATED,
        fingerprint=None,
    )
    return OpenedRun(
        path=None,
        config=config,
        run={},
        model=built,
        variables=variables,
        data=facts,
        numbers=precisions.parse(precision),
        weights=loaded[0].text,
    )


def _choose_names(weights: PathLike, classes: Sequence[str] | int | None) -> tuple[str, ...] | int | None:
    """The names of the outputs, or their number; InputError if the file of weights names others."""
    chain = parse_chain(weights)
    files = [
        *reversed(chain.deltas),
        *(() if chain.base in WORDS else (chain.base,)),
    ]  # the last one that has a head wins
    named = [(file, names) for file in files if (names := read_class_names(file)) is not None]
    file, given = named[0] if named else ("", None)
    if classes is None or isinstance(classes, int):
        if given is not None and isinstance(classes, int) and classes != len(given):
            raise InputError(f"classes={classes}: {file} has a head for {join_words(given)}; leave out --classes")
        return given if given is not None else classes
    names = tuple(classes)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"classes: {doubled[0]!r} is named twice")
    if given is not None and not same_names(given, names):
        raise InputError(
            f"classes={','.join(names)}: {file} has a head for {join_words(given)}, in this order; leave out --classes"
        )
    return names


def _count_outputs(model: str, head: str | None, names: tuple[str, ...] | int | None) -> int:
    """The number of outputs to build a model with; InputError where nothing tells it."""
    if isinstance(names, int):
        return names
    if names is not None:
        return len(names)
    if ",classes=" in model.replace(" ", ""):
        return 1  # the option decides
    if model.startswith("file:") and head is None:
        shape = getattr(models.build_network(model), "output_shape", None)
        if isinstance(shape, tuple) and len(shape) == 2 and shape[1]:
            return int(shape[1])
    raise InputError(
        f"classes: neither --model={model} nor the file of weights says what the outputs stand for; --classes names them in "
        "their order, or gives their number"
    )


def _build(
    config: FinetuneConfig, size: tuple[int, int], outputs: int
) -> tuple[Model, tuple[LoadedWeights, dict[str, str]], tuple[int, ...]]:
    """The model with its weights, the digests of its first values, and the shape of images: in colour, or else grey."""
    numbers = precisions.parse(config.precision)
    family, first = config.model.partition(":")[0], None
    tokens = models.default_token_shape(config.model)
    for channels in (3,) if family in ("keras", "file") or tokens else (3, 1):
        shape: tuple[int, ...] = tokens or (*size, channels)
        try:
            model = models.build_model(
                config.model,
                image_shape=shape,
                outputs=outputs,
                outputs_of=None,
                head=config.head,
                logits=config.loss != "mse",
                seed=config.seed,
                dtype=numbers.variables,
                compute=numbers.compute,
                graph=config.graph_options(),
            )
            before = {e.path: digest(e.path, e.variable.numpy()) for e in name_variables(model.network)}
            for delta in parse_chain(config.weights).deltas:
                if (asked := adapters.read_at(delta)) is not None and model.adapters is None:
                    request_adapters(model, asked.text, seed=asked.seed)
            loaded = load_as_it_is(model, config.weights, rules=config.rules, image_shape=shape)
            return model, (loaded, before), shape
        except (PortError, models.ModelSpecError) as error:
            first = first or error
    assert first is not None
    raise first


def _check_random(config: FinetuneConfig, model: Model, before: dict[str, str], above: frozenset[str]) -> None:
    """Raises InputError if variables have the random values that they were built with."""
    family, kept = config.model.partition(":")[0], []
    if family == "py" and config.weights == "none":
        return  # the factory's own values are what is asked for
    has_own = family in ("file", *SAVED) and parse_chain(config.weights).base == "auto"
    new_head = config.head is not None or getattr(model.network, "has_new_head", False)
    for entry in name_variables(model.network):
        if has_own and not (new_head and "head" in entry.groups):
            continue  # these came with the file
        value: Any = entry.variable.numpy()
        random = value.dtype.kind == "f" and value.size > 1 and float(np.ptp(value)) > 0
        if entry.path not in above and random and digest(entry.path, value) == before.get(entry.path):
            kept.append(entry.path)
    if kept:
        way_out = "--weights=FILE names a file that has them"
        if family == "py":
            way_out += ", and --weights=none takes the values that the factory gives them"
        elif all("head" in path for path in kept):
            way_out += ", and --features needs no head"
        raise InputError(
            f"model={config.model}: {len(kept)} variables have the values that they were built with, because no weights were "
            f"loaded into them: {join_some(kept)}; {way_out}"
        )


def parse_classes(text: str) -> tuple[str, ...] | int:
    """Reads ``--classes``: a number, names separated by commas, or a file with a name in each line.

    Example:
        >>> parse_classes("cat, dog"), parse_classes("10")
        (('cat', 'dog'), 10)
    """
    if text.strip().isdecimal():
        if not 1 <= int(text) <= 1_000_000:
            raise InputError(f"classes={text}: expected a number from 1 to 1,000,000, names, or a file of names")
        return int(text)
    if pathlib.Path(text).is_file():
        lines = read_file(text, 1 << 24).decode("utf-8-sig", errors="replace").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = tuple(name.strip() for name in text.split(","))
    if not names or not all(names):
        raise InputError(
            f"classes={text!r}: expected a number, names separated by commas, or a file with a name in each line"
        )
    if len(names) == 1 and pathlib.Path(text).suffix and not pathlib.Path(text).is_file():
        raise InputError(f"classes={text!r}: there is no such file; names are separated by commas")
    return names
