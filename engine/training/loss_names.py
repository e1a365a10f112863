"""The names of losses, and the text of ``--loss`` for one or several outputs; nothing here needs TensorFlow.

``softmax`` is the loss of the only output, and ``focal gamma=1`` gives it options. Where a network has several outputs, each
has a name, a loss and perhaps a weight: ``species=softmax, age=mse weight=0.3``.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.errors import InputError, check_range
from engine.outside_names import PREFIX
from engine.text import cut, join_words, nearest, parse_number

OF_GRAPH = "graph:"  # followed by the name of a tensor: the loss of the model's own graph
CENTERS = "centers"  # of objects, as boxes (engine.training.centers)
OutputsOf = Literal["example", "pixel", "place"]  # what has outputs of its own; a place is one of a map, for boxes
BALANCED = "balanced"  # class weights that make up for the numbers of examples


class LossError(InputError):
    """A loss function breaks the contract of ``Loss``, or the name or arguments of a loss are wrong."""


@dataclass(frozen=True)
class Option:
    """An option of a loss: a number within limits as in ``check_range``, or with ``text`` any text."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    text: bool = False


_SMOOTHING = Option(least=0, below=1)
_CLASS_WEIGHTS = Option(text=True)
# The options of each loss, besides weight=, which all have.
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "softmax": {"label_smoothing": _SMOOTHING, "class_weights": _CLASS_WEIGHTS},
    "sigmoid": {"label_smoothing": _SMOOTHING, "class_weights": _CLASS_WEIGHTS},
    "mse": {},
    "focal": {"gamma": Option(least=0), "alpha": Option(least=0, most=1), "class_weights": _CLASS_WEIGHTS},
    "dice": {"class_weights": _CLASS_WEIGHTS},
    "softmax+dice": {"label_smoothing": _SMOOTHING, "class_weights": _CLASS_WEIGHTS},
    CENTERS: {"size_weight": Option(least=0), "offset_weight": Option(least=0)},
}
OF_PIXELS = ("dice", "softmax+dice")  # of a class for each pixel, as softmax where the labels are masks
LOSSES = tuple(OPTIONS)
_USERS = f"{PREFIX}module:name"
_KNOWN = [*LOSSES, _USERS]
_ALL_OPTIONS = {"weight", *(name for options in OPTIONS.values() for name in options)}


@dataclass(frozen=True, kw_only=True)
class TaskLoss:
    """The loss of one output of a network.

    Attributes:
        name: the output, and the task of its labels; "" for the only one.
        kind: one of ``LOSSES``, ``py:module:name`` or ``graph:NAME``.
        weight: the factor of its term in the loss.
        options: what else was said, by name; those of ``py:module:name`` are the user's own.
    """

    name: str = ""
    kind: str = "softmax"
    weight: float = 1.0
    options: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def term(self) -> str:
        """The name of its term: the task, or what kind of loss it is."""
        return self.name or (self.kind.rpartition(":")[2] if self.kind.startswith(PREFIX) else self.kind)

    @property
    def class_weights(self) -> str | None:
        """``balanced``, the name of a file, or None; an option of this name of the user's own loss is another."""
        found = None if self.kind.startswith(PREFIX) else self.options.get("class_weights")
        return None if found is None else str(found)


def parse_losses(text: str, *, label_smoothing: float = 0.0, class_weights: str | None = None) -> tuple[TaskLoss, ...]:
    """Reads ``--loss``: a loss for the only output, or one for each of several, separated by commas.

    Args:
        text: ``KIND [option=value ...]`` or ``TASK=KIND [option=value ...], ...``; a name with spaces is quoted.
        label_smoothing, class_weights: the flags of these names, which are the options of the only loss.

    Raises:
        LossError: a loss or an option is unknown, a value is out of range, or two losses have the same output.

    Example:
        >>> [(each.name, each.kind, each.weight) for each in parse_losses("species=softmax, age=mse weight=0.3")]
        [('species', 'softmax', 1.0), ('age', 'mse', 0.3)]
        >>> dict(parse_losses("focal gamma=1")[0].options)
        {'gamma': 1.0}
    """
    flags = {"label_smoothing": label_smoothing or None, "class_weights": class_weights}
    flags = {name: value for name, value in flags.items() if value is not None}
    if text.startswith(OF_GRAPH) and len(text) > len(OF_GRAPH):
        for name, value in flags.items():
            raise LossError(f"{name}={value}: {text} is computed by the graph")
        return (TaskLoss(kind=text),)
    items = _split(text)
    _check_commas(text, items)
    found = tuple(_read_item(text, item, several=len(items) > 1) for item in items)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise LossError(f"loss={cut(text)!r}: the output {name!r} has two losses; expected one")
    for name, value in flags.items():
        if found[0].name:
            raise LossError(
                f"{name}={value}: it is about the only output, but --loss names outputs; write it after the loss that it is "
                f"for, as in '{found[0].name}={found[0].kind} {name}={value}'"
            )
        if name in found[0].options:
            raise LossError(f"{name}={value}: --loss={text!r} says it too; give only one of them")
        found = (_with_option("", found[0], name, str(value)),)
    return found


def find_losses(losses: Sequence[TaskLoss], names: str, *, about: str) -> tuple[str, ...] | None:
    """The outputs that a phase names, such as ``species,age``, in the order of the losses; None if these are all.

    Raises LossError, which begins with ``about``, if there is no loss for one, or there is only one without a name.
    """
    known = [each.name for each in losses]
    if known == [""]:
        raise LossError(f"{about}: the run has one loss, so there is nothing to choose from; leave out losses=")
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in known:
            raise LossError(
                f"{about}: --loss has no {name!r}; expected some of {join_words(known)}, separated by commas"
                f"{nearest(name, known)}"
            )
        if asked.count(name) > 1:
            raise LossError(f"{about}: {name} is named twice")
    return None if len(asked) == len(known) else tuple(name for name in known if name in asked)


def list_figures(losses: Sequence[TaskLoss]) -> tuple[str, ...]:
    """What ``--monitor`` may name of the losses of several outputs: eval_loss/TASK, and eval_accuracy/TASK where there is one."""
    named = [each for each in losses if each.name]
    accuracies = [
        f"eval_accuracy/{each.name}" for each in named if each.kind in OPTIONS and each.kind not in ("mse", CENTERS)
    ]
    return (*(f"eval_loss/{each.name}" for each in named if len(named) > 1), *accuracies)


def check_accuracy(monitor: str, losses: Sequence[TaskLoss]) -> None:
    """Raises LossError if ``--monitor`` is the accuracy of a run whose outputs each may have one."""
    if monitor == "eval_accuracy" and losses[0].name:
        known = [name for name in list_figures(losses) if name.startswith("eval_accuracy")]
        raise LossError(
            f"monitor={monitor}: there are several outputs, {', '.join(each.name for each in losses)}; say which one, as in "
            f"{_any_of(['eval_loss', *known])}"
        )


def output_kind(loss: str | TaskLoss, *, classes: bool) -> str:
    """What the outputs of a model mean that was trained with a loss: "softmax", "sigmoid" or "mse".

    The loss of a graph, or of the user's own code, does not say: its outputs are taken for those of ``classes`` where the
    data have some. With the loss focal they are those of classes, or else of one or several labels.
    """
    kind = parse_losses(loss)[0].kind if isinstance(loss, str) else loss.kind
    if kind.startswith((OF_GRAPH, PREFIX)):
        return "softmax" if classes else "mse"
    if kind == "focal":
        return "softmax" if classes else "sigmoid"
    return "softmax" if kind in OF_PIXELS else kind


def _split(text: str) -> list[list[str]]:
    """The words of each loss: items are separated by commas, words by white space; quotes hold a name together."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=",")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise LossError(f"loss={cut(text)!r}: {str(error).lower()}") from None
    items: list[list[str]] = [[]]
    for word in words:
        if word.strip(","):
            items[-1].append(word)
        else:
            items += [[] for _ in word]
    if not all(items):
        raise LossError(
            f"loss={cut(text)!r}: expected one of {', '.join(_KNOWN)}, or a loss for each output, separated by commas, as in "
            "'species=softmax, age=mse weight=0.3'"
        )
    return items


def _check_commas(text: str, items: Sequence[Sequence[str]]) -> None:
    """Raises LossError where commas and spaces are confused: commas separate outputs, spaces the options of one."""
    for number, words in enumerate(items):
        (name, _, value), (second, equals, other) = (word.partition("=") for word in (*words, "")[:2])
        if name in _ALL_OPTIONS and value not in OPTIONS and number:
            raise LossError(
                f"loss={cut(text)!r}: `{words[0]}` is an option; options follow their loss after a space, not a comma, as in "
                f"'{' '.join((*items[number - 1], words[0]))}'"
            )
        if words[1:] and (words[1].startswith("=") or words[0].endswith("=")):
            raise LossError(
                f"loss={cut(text)!r}: expected OUTPUT=LOSS without spaces around `=`, as in 'species=softmax'"
            )
        if equals and other in OPTIONS and second not in _ALL_OPTIONS:
            raise LossError(
                f"loss={cut(text)!r}: the losses of several outputs are separated by commas, as in '{words[0]}, {words[1]}'"
            )


def _read_item(text: str, words: Sequence[str], *, several: bool) -> TaskLoss:
    name, equals, kind = words[0].rpartition("=") if PREFIX not in words[0] else _split_user(words[0])
    about = f"loss={cut(text)!r}"
    if equals and not re.fullmatch(r"[^\s,=/\"']([^,=/\"']*[^\s,=/\"'])?", name):
        raise LossError(f"{about}: {name!r} is not the name of an output; expected one without , = / and quotes")
    if several and not equals:
        raise LossError(
            f"{about}: `{words[0]}` does not say which output it is for; expected OUTPUT=LOSS, as in "
            "'species=softmax, age=mse weight=0.3'"
        )
    if kind.startswith(OF_GRAPH):
        raise LossError(f"{about}: {kind} is the loss of a whole graph; it has no name, options or others beside it")
    if kind.startswith(PREFIX):
        if not all(kind.removeprefix(PREFIX).partition(":")[::2]):
            raise LossError(f"{about}: {kind!r} is not a valid loss; expected {_USERS}")
    elif kind not in OPTIONS:
        what = about if kind == text else f"{about}: `{kind}` is not a loss"
        raise LossError(
            f"{what}{':' if kind == text else ';'} expected one of {', '.join(_KNOWN)}{nearest(kind, _KNOWN)}"
        )
    found = TaskLoss(name=name, kind=kind)
    given: set[str] = set()
    for word in words[1:]:
        option, equals, value = word.partition("=")
        if not equals or not value:
            raise LossError(f"{about}: `{word}` is not an option of a loss; expected NAME=VALUE, such as weight=0.5")
        if option in given:
            raise LossError(f"{about}: `{option}` is given twice")
        given.add(option)
        found = _with_option(f"{about}: ", found, option, value)
    return found


def _split_user(word: str) -> tuple[str, str, str]:
    """As ``rpartition("=")``, where the loss is the user's own."""
    before, _, after = word.partition(PREFIX)
    return before.removesuffix("="), "=" if before else "", PREFIX + after


def _with_option(about: str, loss: TaskLoss, name: str, value: str) -> TaskLoss:
    """The loss with one more option; LossError, which begins with ``about``, if it has no such one, or the value is not valid."""
    own = OPTIONS.get(loss.kind)  # None: the user's own loss, with any options
    option = Option(above=0) if name == "weight" else Option(text=True) if own is None else own.get(name)
    number = parse_number(value)
    if option is None:
        known = ["weight", *(own or ())]
        if name == "label_smoothing" and loss.kind in ("mse", "dice", CENTERS):
            raise LossError(f"{about}{name}={value}: the loss {loss.kind} has no classes to smooth over")
        raise LossError(
            f"{about}{name}={value}: the loss {loss.kind} has no such option; expected {_any_of(known)}{nearest(name, known)}"
        )
    if not option.text:
        if number is None:
            raise LossError(f"{about}{name}={value!r} is not a number")
        try:
            check_range(name, number, option.least, option.most, above=option.above, below=option.below)
        except InputError as error:
            raise LossError(f"{about}{error}") from None
    if name == "weight":
        return dataclasses.replace(loss, weight=float(value))
    kept: float | str = value if number is None or (own is not None and option.text) else number
    return dataclasses.replace(loss, options={**loss.options, name: kept})


def _any_of(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
