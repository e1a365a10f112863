"""Numbers by filter: learning rates, or weight decays, of their own for the variables that a filter matches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.errors import InputError, check_range
from engine.selection.filters import Filter, FilterError, parse_filter
from engine.text import join_some, parse_number, shorten

if TYPE_CHECKING:  # rules can be read without TensorFlow
    from engine.selection.variables import NamedVariable


class RateError(InputError):
    """A rule of ``rates`` or ``decays`` cannot be read, or has no effect."""


@dataclass(frozen=True)
class Rates:
    """Rules, each of which gives the variables that its filter matches a number: the last rule that matches decides.

    Attributes:
        filters, values: the filter of each rule, and its number.
        name: what the numbers are, "rates" or "decays".
    """

    filters: tuple[Filter, ...]
    values: tuple[float, ...]
    name: str = "rates"

    def deciding(self, variable: NamedVariable) -> int | None:
        """Returns the number of the rule that decides a variable, from 0; None if no rule matches it."""
        last = len(self.filters) - 1
        return next((last - n for n, part in enumerate(reversed(self.filters)) if part(variable)), None)

    def scaled(self, factor: float) -> Rates:
        """Returns the same rules with each number multiplied by a factor, such as a schedule's."""
        return replace(self, values=tuple(value * factor for value in self.values))

    def by_filter(self) -> dict[str, float]:
        """Returns filter, as text -> number; of two rules with the same filter, the last decides."""
        return {str(part): value for part, value in zip(self.filters, self.values, strict=True)}

    def __str__(self) -> str:
        return " ".join(self.rule(number) for number in range(len(self.filters)))

    def rule(self, number: int) -> str:
        """The text of a rule, such as ``@head=0.001``."""
        return f"{self.filters[number]}={self.values[number]:g}"

    def for_variables(self, variables: Sequence[NamedVariable]) -> Rates | None:
        """Returns only the rules that decide one of these variables; None if none does."""
        used = sorted({place for variable in variables if (place := self.deciding(variable)) is not None})
        filters, values = tuple(self.filters[n] for n in used), tuple(self.values[n] for n in used)
        return replace(self, filters=filters, values=values) if used else None

    def check(self, variables: Sequence[NamedVariable]) -> None:
        """Raises RateError unless each rule decides at least one of these variables, the ones that it could concern."""
        what = "trains" if self.name == "rates" else "trains and decays (--decay says what decays)"
        deciding = [self.deciding(variable) for variable in variables]
        for number, part in enumerate(self.filters):
            matched = [place for variable, place in zip(variables, deciding, strict=True) if part(variable)]
            if number in matched:
                continue
            about = f"{self.name}: rule {number + 1} `{self.rule(number)}`"
            if matched:
                later = dict.fromkeys(f"`{self.rule(place)}`" for place in matched if place is not None)
                raise RateError(
                    f"{about} has no effect: each of the {len(matched)} variables that it matches is decided by a later "
                    f"rule ({join_some(list(later))}), because the last match decides"
                )
            some = f"expected variables of {shorten([e.path for e in variables])}" if variables else "no variable does"
            raise RateError(f"{about} matches nothing that {what}; {some}")


def parse_rates(text: str, *, name: str = "rates") -> Rates:
    """Reads learning rates by filter, such as ``@head=1e-3 @blocks[-2:]=1e-4``, for ``TrainStep`` calls.

    Rules are separated by white space. A rule is an item of a filter (a regular expression that matches whole paths, or
    ``@group``), ``=`` and a number. The last rule that matches a variable decides. With ``name="decays"`` the numbers are
    weight decays, for the argument ``decays`` of an optimizer.

    Raises:
        RateError: there is no rule, a rule is not valid, or its number is out of range. A learning rate of 0 is out of
            range: what should not move is left out of the selection.

    Example:
        >>> import tensorflow as tf
        >>> from engine import SGD, Loss, TrainStep, parse_rates, select
        >>> model = {"stem/w": tf.Variable(1.0), "head/w": tf.Variable(1.0)}
        >>> def loss_fn(batch, *, training, seeds):
        ...     return Loss(terms={"sum": (batch["x"] * (model["stem/w"] + model["head/w"]), None)})
        >>> step = TrainStep(loss_fn, SGD())
        >>> rates = parse_rates("head/.*=0.5")
        >>> result = step(select(model, "@all"), {"x": tf.ones([4])}, learning_rate=0.25, rates=rates)
        >>> [float(variable) for variable in model.values()]
        [0.75, 0.5]
    """
    return read_rates(text, name=name)


def read_rates(text: str, *, name: str = "rates", trains: Mapping[str, str] | None = None) -> Rates:
    """Does what ``parse_rates`` does; for its errors, ``trains`` is where a filter says what trains -> that filter.

    The keys have a ``{}`` for the quoted filter, such as ``--train={}``.
    """
    rule = {"rates": "FILTER=RATE, such as @head=1e-3", "decays": "FILTER=DECAY, such as @head=0.1"}[name]
    filters: list[Filter] = []
    values: list[float] = []
    for position, word in enumerate(text.split(), start=1):
        about = f"{name}={text!r}: rule {position} `{word}`"
        body, equals, number = word.rpartition("=")
        value = parse_number(number)
        if not equals or not body or value is None:
            raise RateError(f"{about}: expected {rule}, with rules separated by white space")
        if re.search(r"=[-+.\de]+,", body):
            raise RateError(f"{about}: rules are separated by white space, not by commas")
        if body.startswith("!"):
            raise RateError(
                f"{about}: `!` is not valid here, because a rule gives a number; the last rule that matches decides, so "
                "name the exception in a later rule with a number of its own"
            )
        try:
            (item,) = parse_filter(body).items
            if name == "decays":
                check_range("decay", value, 0)
            elif value:
                check_range("rate", value, above=0)
        except FilterError as error:
            raise RateError(f"{about}: {str(error).partition(': ')[2]}") from None
        except InputError as error:
            raise RateError(f"{about}: {error}") from None
        filters.append(item.filter)
        values.append(value)
    if not filters:
        raise RateError(f"{name}={text!r}: it is empty; expected {rule}")
    if name == "rates" and 0 in values:
        raise RateError(_explain_zero(text, values, trains or {"--train={}": "@all"}))
    return Rates(tuple(filters), tuple(values), name)


def _explain_zero(text: str, values: Sequence[float], trains: Mapping[str, str]) -> str:
    """The message for rules with a rate of 0, with the filters to write instead."""
    words = text.split()
    first = values.index(0)
    without = " ".join(f"!{word.rpartition('=')[0]}" for word, value in zip(words, values, strict=True) if value == 0)
    rest = " ".join(word for word, value in zip(words, values, strict=True) if value)
    places = [where.replace("{}", shlex.quote(f"{train} {without}"), 1) for where, train in trains.items()]
    left = f"; the rates are then {shlex.quote(rest)}" if rest else ", without rates"
    behind = "; what a later rule gives a rate must be named again behind that" if any(values[first:]) else ""
    return (
        f"rates={text!r}: rule {first + 1} `{words[first]}`: expected a learning rate above 0; to keep variables as they are, "
        f"leave them out of what trains, which also saves their gradients and slots: {' and '.join(places)}{left}{behind}"
    )
