"""The metrics by name, and the text of ``--metrics``; nothing here needs TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.errors import InputError
from engine.outside_names import PREFIX
from engine.text import cut, join_words, nearest
from engine.training.loss_names import CENTERS

CLASSES, VALUES = ("softmax", "sigmoid"), ("mse",)
_TOP = re.compile(r"top([1-9]\d{0,5})")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
PLAIN = ("eval_loss", "eval_accuracy")  # what --monitor may always name
_TAKEN = ("loss", "accuracy")  # figures that evaluations have without being asked


class MetricError(InputError):
    """A metric is unknown, does not suit the outputs or labels, or breaks the contract of ``Metric``."""


class Facts(NamedTuple):
    """What is known of a metric by its name.

    Attributes:
        kinds: what the outputs must mean (``engine.training.loss_names.output_kind``).
        higher_is_better: as ``Metric.higher_is_better``.
    """

    kinds: tuple[str, ...]
    higher_is_better: bool = True


METRICS: Mapping[str, Facts] = {
    "accuracy": Facts(CLASSES),
    "balanced_accuracy": Facts(CLASSES),
    "f1": Facts(CLASSES),
    "precision": Facts(CLASSES),
    "recall": Facts(CLASSES),
    "auc": Facts(CLASSES),
    "confusion": Facts(CLASSES),
    "miou": Facts(("softmax",)),
    "dice": Facts(("softmax",)),
    "ap50": Facts((CENTERS,)),
    "mae": Facts(VALUES, higher_is_better=False),
    "mse": Facts(VALUES, higher_is_better=False),
    "rmse": Facts(VALUES, higher_is_better=False),
    "r2": Facts(VALUES),
}
_TOPS = Facts(("softmax",))
_KNOWN = [*METRICS, "top5", f"{PREFIX}module:name"]


class MetricRequest(NamedTuple):
    """A metric that ``--metrics`` asks for.

    Attributes:
        metric: the name of a metric, or ``py:module:name``.
        task: the output that it is for; "" for every one that it fits.
    """

    metric: str
    task: str = ""

    @property
    def is_users(self) -> bool:
        """Whether it is the user's own."""
        return self.metric.startswith(PREFIX)

    def __str__(self) -> str:
        return f"{self.task}:{self.metric}" if self.task else self.metric


def parse_metrics(text: str) -> tuple[MetricRequest, ...]:
    """Reads ``--metrics``: names separated by commas, such as ``f1,top5``, ``species:f1`` or ``py:module:name``.

    Raises:
        MetricError: a metric is unknown, or named twice.

    Example:
        >>> parse_metrics("top3,species:f1")
        (MetricRequest(metric='top3', task=''), MetricRequest(metric='f1', task='species'))
    """
    found: list[MetricRequest] = []
    for item in map(str.strip, text.split(",") if text.strip() else []):
        task, colon, metric = ("", "", item) if item.startswith(PREFIX) else item.rpartition(":")
        if f":{PREFIX}" in item and not item.startswith(PREFIX):
            task, _, metric = item.partition(":")
        request = MetricRequest(metric, task)
        _check_name(text, item, request, colon=bool(colon))
        if request in found:
            raise MetricError(f"metrics={cut(text)!r}: {item} is named twice")
        found.append(request)
    return tuple(found)


def _check_name(text: str, item: str, request: MetricRequest, *, colon: bool) -> None:
    about = f"metrics={cut(text)!r}"
    if request.is_users:
        module, _, name = request.metric.removeprefix(PREFIX).partition(":")
        if not module or not name:
            raise MetricError(f"{about}: `{item}` is not a valid metric; expected py:module:name")
    elif colon and not request.task:
        raise MetricError(
            f"{about}: `{item}` names no output before the colon; expected OUTPUT:METRIC, as in species:f1"
        )
    elif facts_of(request.metric) is None:
        raise MetricError(
            f"{about}: `{cut(request.metric)}` is not a metric; expected some of {', '.join(_KNOWN)}, separated by commas"
            f"{nearest(request.metric, _KNOWN)}"
        )


def facts_of(metric: str) -> Facts | None:
    """What is known of a metric of this name; None if there is none."""
    return _TOPS if _TOP.fullmatch(metric) else METRICS.get(metric)


def find_top(metric: str) -> int | None:
    """K of the metric ``topK``; None if it is another one."""
    found = _TOP.fullmatch(metric)
    return None if found is None else int(found[1])


def check_fits(requests: Sequence[MetricRequest], kinds: Mapping[str, str | None]) -> dict[str, list[MetricRequest]]:
    """The metrics of each output, by its name.

    Args:
        kinds: what each output means, by its name ("" for the only one); None where only the data tell.

    Raises:
        MetricError: an output does not exist, or a metric suits none.

    Example:
        >>> check_fits(parse_metrics("f1,mae"), {"species": "softmax", "age": "mse"})["age"]
        [MetricRequest(metric='mae', task='')]
    """
    found: dict[str, list[MetricRequest]] = {task: [] for task in kinds}
    for request in requests:
        about = f"metrics={request}"
        if request.task and request.task not in kinds:
            names = [name for name in kinds if name]
            known = (
                f"; expected one of {join_words(names)}{nearest(request.task, names)}"
                if names
                else ", but one without a name"
            )
            raise MetricError(f"{about}: there is no output {request.task!r}{known}")
        asked = [request.task] if request.task else list(kinds)
        facts = facts_of(request.metric)
        if facts is None and len(asked) > 1:
            raise MetricError(
                f"{about}: the network has several outputs, {join_words(kinds)}; say for which it is, as in "
                f"{asked[0]}:{request.metric}"
            )
        fitting = [task for task in asked if facts is None or kinds[task] in (None, *facts.kinds)]
        if not fitting and facts is not None:
            kind = kinds[asked[0]]
            able = [name for name, each in METRICS.items() if kind in each.kinds]
            able += ["topK"] if kind in _TOPS.kinds else []
            raise MetricError(
                f"{about}: it is for outputs of {' or '.join(facts.kinds)}, but the loss is "
                f"{' and '.join(dict.fromkeys(str(kinds[task]) for task in asked))}"
                + (f"; for {kind} there are {', '.join(able)}" if able else "")
            )
        for task in fitting:
            found[task].append(request)
    return found


def check_users_name(text: str, name: object) -> None:
    """Raises MetricError unless a metric of the user's own has a name that lines and files can call it by."""
    if not isinstance(name, str) or not _WORD.fullmatch(name):
        raise MetricError(f"metrics={text!r}: its name is {name!r}; expected a word such as 'worst_recall'")
    if name in _TAKEN:
        raise MetricError(f"metrics={text!r}: its name is {name!r}, which every evaluation has; give it another one")


def check_monitored(monitor: str, figures: Sequence[str], *, accuracy: bool = True) -> None:
    """Raises InputError unless ``--monitor`` is one of the figures that evaluations have.

    ``accuracy`` says whether they have one without a metric of this name.
    """
    known = [name for name in PLAIN if accuracy or name == PLAIN[0]] + [f"eval_{name}" for name in figures]
    if monitor not in known:
        why = "" if accuracy or monitor != PLAIN[1] else " (the loss has no accuracy of its own)"
        raise InputError(f"monitor={monitor!r}: expected {' or '.join(known)}{why}{nearest(monitor, known)}")


def check_monitor(monitor: str, requests: Sequence[MetricRequest]) -> None:
    """Raises InputError unless ``--monitor`` is a figure that evaluations have: eval_loss, eval_accuracy, or of a metric.

    A metric of the user's own says what it is called once it is imported, so that any name is accepted before.
    """
    tables = [each for each in requests if each.metric == "confusion"]
    names = [f"eval_{each.metric}" + (f"/{each.task}" if each.task else "") for each in requests if not each.is_users]
    known = [name for name in dict.fromkeys((*PLAIN, *names)) if not name.startswith("eval_confusion")]
    if tables and monitor.startswith("eval_confusion"):
        raise InputError(f"monitor={monitor!r}: it is a table; expected {', '.join(known)}")
    stem = monitor.partition("/")[0]
    if (
        monitor in known
        or (stem in known and stem != PLAIN[0])
        or (monitor.startswith("eval_") and any(each.is_users for each in requests))
    ):
        return
    more = ""
    if monitor.startswith("eval_") and facts_of(stem.removeprefix("eval_")) is not None:
        more = f"; --metrics={stem.removeprefix('eval_')} computes it"
    raise InputError(f"monitor={monitor!r}: expected one of {', '.join(known)}{more or nearest(monitor, known)}")
