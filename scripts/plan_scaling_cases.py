"""What plan_scaling plans for: models and strategies with their bytes and their compute, and the predicted steps."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.distribution.scaling import Algorithm, Compute, Link, predict_step
from engine.errors import FileError, InputError, check_range
from engine.reading import read_file
from engine.sizes import parse_bandwidth
from engine.text import cut, join_some, parse_number

_LARGEST = 1 << 26  # bytes of a file of measured compute
SCALINGS = {"strong": "batch_size", "weak": "worker_batch_size"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags that hold for all cases; ``image_size`` is (height, width), or None for each model's own."""

    image_size: tuple[int, int] | None
    classes: int
    precision: str
    batch_size: int
    worker_batch_size: int
    all_reduce: Algorithm
    latency: float

    @classmethod
    def from_flags(cls, flags: Any) -> Settings:
        """Reads the flags; raises InputError for a size of images or a precision that is not valid."""
        from engine.data import parse_image_size
        from engine.training import precision

        precision.parse(flags.precision)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "image_size"]
        size = None if flags.image_size is None else parse_image_size(flags.image_size)
        return cls(image_size=size, **{name: flags[name].value for name in names})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what trains in it.

    Attributes:
        model, image_size, strategy, train: the model and its images, and the name and the filter of what trains.
        parameters, trained_parameters: counted from the model's variables.
        bytes_per_step, collectives: what a worker gives into sums in a step (engine.training.communication).
        compute, source: what a step takes on one device, and where that comes from; None before it is known.
    """

    model: str
    image_size: tuple[int, int]
    strategy: str
    train: str
    parameters: int
    trained_parameters: int
    bytes_per_step: int
    collectives: int
    compute: Compute | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case in messages."""
        return f"{self.model} {self.strategy}"

    def with_compute(self, found: Mapping[str, Any]) -> Case:
        """This case with the compute in ``found``, whose other keys become its source."""
        numbers = {key: found[key] for key in ("seconds_per_example", "seconds_per_step")}
        rest = {key: value for key, value in found.items() if key not in numbers}
        return dataclasses.replace(self, compute=Compute(**numbers), source=rest)

    def to_json(self, settings: Settings) -> dict[str, Any]:
        """What scaling.json holds of it, and ``read_compute`` reads."""
        names = (
            "model",
            "image_size",
            "strategy",
            "train",
            "parameters",
            "trained_parameters",
            "bytes_per_step",
            "collectives",
        )
        assert self.compute is not None
        return {
            **{name: getattr(self, name) for name in names},
            "image_size": list(self.image_size),
            "precision": settings.precision,
            **dataclasses.asdict(self.compute),
            **self.source,
        }


def count_cases(model: str, strategies: Sequence[str], settings: Settings) -> Iterator[Case]:
    """Counts what each strategy trains in a model, which is built without memory for its weights.

    Raises InputError for a model or a strategy that does not exist, or that trains several selections in turn.
    """
    from engine import models
    from engine.models.abstract import abstract_variables
    from engine.selection.variables import name_variables
    from engine.study.strategies import ModelStrategies, split_items
    from engine.training import precision
    from engine.training.communication import expect_communication

    numbers = precision.parse(settings.precision)
    items = split_items(strategies)
    size = settings.image_size or models.default_image_size(model)
    with abstract_variables():
        built = models.build_model(
            model,
            image_shape=(*size, 3),
            outputs=settings.classes,
            dtype=numbers.variables,
            compute=numbers.compute,
        )
    known = ModelStrategies(name_variables(built.network), built.statistics)
    for text in items:
        strategy = known.strategy(text)
        if len(strategy.planned) != 1:
            raise InputError(
                f"strategies={text!r}: it trains several selections in turn, whose steps differ; name each of them, such as "
                "head,last_2,full"
            )
        (phase,) = strategy.planned
        selection = known.select(phase.train)
        exchanged = expect_communication(selection)
        yield Case(
            model=model,
            image_size=size,
            strategy=strategy.name,
            train=phase.train,
            parameters=selection.variables.parameters,
            trained_parameters=selection.trained_parameters,
            bytes_per_step=exchanged.bytes,
            collectives=exchanged.collectives,
        )


def read_compute(text: str, found: Sequence[Case], settings: Settings) -> list[dict[str, Any]]:
    """The compute of each case, from --compute: a number, for one case, or a file.

    Raises InputError if the number is not above 0 or there are several cases, or if the file is not such a file, lacks a
    case or was measured on images of another size or in another precision.
    """
    number = parse_number(text)
    if number is not None:
        check_range("compute", number, above=0)
        if len(found) > 1:
            raise InputError(
                f"compute={text}: a number is the time of one model and one strategy, but there are {len(found)}: "
                f"{join_some([case.name for case in found])}; name one with --model and --strategies, or give a file"
            )
        return [{"seconds_per_example": number, "seconds_per_step": 0.0, "given": text}]
    given = _read_rows(text)
    chosen = []
    for case in found:
        rows = [row for row in given if (row["model"], row["strategy"]) == (case.model, case.strategy)]
        if len(rows) != 1:
            has = join_some([cut(f"{row['model']} {row['strategy']}") for row in given]) or "nothing"
            raise InputError(f"compute={text}: it has {len(rows)} entries for {case.name}; expected one; it has {has}")
        expected = {"image_size": list(case.image_size), "train": case.train, "precision": settings.precision}
        for key, value in expected.items():
            if rows[0].get(key, value) != value:
                raise InputError(
                    f"compute={text}: {case.name} was measured with {key}={cut(repr(rows[0][key]))}, but here it is {value!r}"
                )
        row = rows[0]
        taken = {"seconds_per_example": row["seconds_per_example"], "seconds_per_step": row["seconds_per_step"]}
        chosen.append(taken | ({"measured": row["measured"]} if "measured" in row else {}) | {"given": text})
    return chosen


def _read_rows(path: str) -> list[dict[str, Any]]:
    """The entries of a file of compute; seconds_per_step is 0 where it is missing."""
    try:
        found = json.loads(read_file(path, _LARGEST))
    except FileNotFoundError:
        raise InputError(
            f"compute={path!r}: it is neither a number of seconds nor a file that exists; expected, for example, 0.01 or FILE.json"
        ) from None
    except OSError as error:
        raise FileError(f"compute={path}: {error.strerror}") from None
    except FileError as error:
        raise FileError(f"compute={error}") from None
    except (ValueError, RecursionError):
        raise FileError(f"compute={path}: the file is not valid JSON") from None
    rows = found.get("compute") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FileError(f"compute={path}: expected a list of objects, or an object with such a list as `compute`")
    return [_check_row(row, f"compute={path}: entry {number}") for number, row in enumerate(rows, 1)]


def _check_row(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An entry of a file of compute, with its numbers as floats; FileError if it is not one."""
    row = {"seconds_per_step": 0.0} | dict(row)
    for key in ("model", "strategy"):
        if not isinstance(row.get(key), str):
            raise FileError(f"{name}: {key}={cut(repr(row.get(key)))}: expected a text")
    for key in ("seconds_per_example", "seconds_per_step"):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FileError(f"{name}: {key}={cut(repr(value))}: expected a number")
    try:
        compute = Compute(float(row["seconds_per_example"]), float(row["seconds_per_step"]))
        json.dumps(row.get("measured"), allow_nan=False)
    except (InputError, ValueError, OverflowError) as error:
        raise FileError(f"{name}: {error}") from None
    return row | dataclasses.asdict(compute)


def make_links(bandwidths: Sequence[str], latency: float) -> dict[str, Link]:
    """The links by the text of their bandwidth."""
    return {text: Link(parse_bandwidth(text, name="bandwidths"), latency) for text in bandwidths}


def predict(
    found: Sequence[Case], settings: Settings, *, workers: Sequence[int], links: Mapping[str, Link]
) -> list[dict[str, Any]]:
    """A row for each case, link, kind of scaling and number of workers."""
    rows: list[dict[str, Any]] = []
    for case in found:
        for bandwidth, link in links.items():
            for scaling, flag in SCALINGS.items():
                rows += _predict(case, settings, scaling, getattr(settings, flag), workers, bandwidth, link)
    return rows


def _predict(
    case: Case, settings: Settings, scaling: str, batch: int, workers: Sequence[int], bandwidth: str, link: Link
) -> Iterator[dict[str, Any]]:
    assert case.compute is not None
    shared: dict[str, Any] = {"size": case.bytes_per_step, "collectives": case.collectives, "link": link}
    shared["algorithm"] = settings.all_reduce
    one = predict_step(case.compute, examples=batch, workers=1, **shared)
    for count in workers:
        examples = batch * (count if scaling == "weak" else 1)
        step = predict_step(case.compute, examples=examples, workers=count, **shared)
        yield {
            "model": case.model,
            "strategy": case.strategy,
            "bandwidth": bandwidth,
            "scaling": scaling,
            **dataclasses.asdict(step),
            "seconds": step.seconds,
            "examples_per_second": step.examples_per_second,
            "speedup": step.speedup(one),
            "efficiency": step.speedup(one) / count,
        }


def base_name(path: str) -> str:
    """The name of a file in a table."""
    return os.path.basename(path) or path
