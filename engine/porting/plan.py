"""A port resolved on names and shapes: every variable and every tensor explained, before data are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.porting.errors import PortError
from engine.porting.ledger import Skipped
from engine.porting.readers.source import TensorSource
from engine.porting.rules import transforms
from engine.porting.rules.language import Rule, Rules
from engine.porting.rules.transforms import Spec, Target
from engine.selection.variables import NamedVariable
from engine.text import listed, nearest


@dataclass(frozen=True)
class Step:
    """One variable, the tensors it is made of, and the rule that says so."""

    entry: NamedVariable
    sources: tuple[str, ...]
    rule: Rule
    target: Target
    done: tuple[str, ...] = ()  # the transforms, as they turned out


@dataclass
class Plan:
    """What a load will do. ``problems`` are lists of lines by title; a plan with any is not carried out."""

    steps: list[Step] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, source: TensorSource, rules: Rules) -> None:
        """Raises PortError, both sides listed, unless everything is explained."""
        if self.missing or self.unused or self.wrong:
            raise PortError(
                f"{source.path}: it does not fit the model (rules: {rules.name})"
                + listed("in the model, not in the file", self.missing)
                + listed("in the file, not in the model", self.unused)
                + listed("of another shape or type", self.wrong)
            )


def resolve(
    entries: Iterable[NamedVariable], source: TensorSource, rules: Rules, *, grid: tuple[int, int] | None = None
) -> Plan:
    """Decides for every variable what it is made of, and for every tensor where it goes.

    Args:
        entries: the model's variables.
        source: the file; only names, shapes and dtypes are asked.
        rules: how names correspond.
        grid: the model's patch grid (rows, columns), for ``resize_grid``.

    Raises:
        PortError: two rules for one variable, a rule or skip that matches nothing, names that a prefix
            makes equal.
    """
    names = _short_names(source, rules)
    plan, matched, taken = Plan(), set(), set()
    aliases: dict[str, str] = {}
    for entry in entries:
        aliases |= dict.fromkeys(entry.paths, entry.path)
        found, absent = _candidates(entry, rules, names)
        matched |= {rule.where for rule, _ in found} | {rule.where for rule, _ in absent}
        strict = [rule for rule, _ in absent if not rule.optional]
        lines = [line for line in rules.fresh if any(line.pattern.fullmatch(path) for path in entry.paths)]
        matched |= {line.where for line in lines}
        deciding = [line.where for line in lines] + [rule.where for rule, _ in found] + [rule.where for rule in strict]
        if len(deciding) > 1:
            raise PortError(f"{deciding[1]}: a second rule for the variable {entry.path}; the first is {deciding[0]}")
        if lines:
            plan.fresh[entry.path] = lines[0].where
        elif found:
            rule, sources = found[0]
            taken |= set(sources)
            _fit(plan, Step(entry, sources, rule, Target(tuple(entry.variable.shape), grid)), source)
        elif "head" in entry.groups:
            plan.fresh[entry.path] = "not in the file"
        else:
            plan.missing.append(f"{entry.path} {list(entry.variable.shape)}{_why(absent, names)}")
    _check_lines(rules, matched, names)
    rest = {short: name for short, name in names.items() if name not in taken}
    _leftovers(plan, rest, aliases, rules)
    return plan


def _short_names(source: TensorSource, rules: Rules) -> dict[str, str]:
    """Source names as the rules see them -> as they are."""
    names: dict[str, str] = {}
    for name in source.names():
        short = rules.without_prefix(name)
        if short in names:
            raise PortError(f"{rules.prefix[0].where}: without the prefix, {names[short]} and {name} are both {short}")
        names[short] = name
    return names


def _candidates(
    entry: NamedVariable, rules: Rules, names: dict[str, str]
) -> tuple[list[tuple[Rule, tuple[str, ...]]], list[tuple[Rule, str]]]:
    """Rules that apply to a variable, with their tensors; and those that lack a tensor, with its name."""
    found, absent = [], []
    for rule in rules.rules:
        lacking = None
        for path in entry.paths:  # a shared variable has several
            if match := rule.pattern.fullmatch(path):
                wanted = rule.expand(match, names)
                lacking = next((name for name in wanted if name not in names), None)
                if lacking is None:
                    found.append((rule, tuple(names[name] for name in wanted)))
                    break
        if lacking is not None:
            absent.append((rule, lacking))
    return found, absent


def _fit(plan: Plan, step: Step, source: TensorSource) -> None:
    """The step joins the plan if its result has the variable's shape and a type that can become its type."""
    variable, rule = step.entry.variable, step.rule
    specs = [Spec(source.shape(name), source.dtype(name)) for name in step.sources]
    result, done, problem = transforms.infer(specs, rule.transforms, step.target)
    shape = list(variable.shape)
    came = f" (from {' | '.join([' + '.join(str(list(spec.shape)) for spec in specs), *done])})" if done else ""
    if result is None:
        reason = f"{problem}{came}; {shape} in the model"
    elif result.shape != step.target.shape:
        reason = f"{list(result.shape)} in the file{came}, {shape} in the model"
    elif _castable(result.dtype, step.entry):
        plan.steps.append(replace(step, done=done))
        return
    else:
        reason = f"{result.dtype.name} in the file, {variable.dtype.name} in the model"
    other_shape = result is None or result.shape != step.target.shape
    if "head" in step.entry.groups and other_shape:
        plan.fresh[step.entry.path] = reason
        plan.skipped += [
            Skipped(name, f"{rule.where}: the head {step.entry.path} stays fresh") for name in step.sources
        ]
    else:
        plan.wrong.append(f"{step.entry.path}: {reason} ({rule.where}: {' + '.join(step.sources)})")


def _leftovers(plan: Plan, rest: Mapping[str, str], aliases: Mapping[str, str], rules: Rules) -> None:
    """Explains the tensors that no rule took, by a skip or as a shared variable's other name; else they are unused."""
    skipped = {entry.name for entry in plan.skipped}
    for short, name in rest.items():
        line = next((line for line in rules.skip if line.pattern.fullmatch(short)), None)
        if line is not None:
            plan.skipped.append(Skipped(name, line.where))
        elif short in aliases and any(step.entry.path == aliases[short] for step in plan.steps):
            plan.skipped.append(Skipped(name, f"another name of {aliases[short]}"))
        elif name not in skipped:
            rule = next((rule for rule in rules.rules if rule.could_give(short)), None)
            plan.unused.append(name + (f" ({rule.where}: for {rule.pattern.pattern})" if rule else ""))


def _check_lines(rules: Rules, matched: set[str], names: Mapping[str, str]) -> None:
    """Every line without `?` must match something: else it is misspelt, or of another model."""
    for rule in rules.rules:
        if rule.where not in matched and not rule.optional:
            raise PortError(f"{rule.where}: `{rule.pattern.pattern}` matches no variable of the model")
    for line in rules.fresh:
        if line.where not in matched and not line.optional:
            raise PortError(f"{line.where}: `fresh {line.pattern.pattern}` matches no variable of the model")
    for line in rules.skip:
        if not line.optional and not any(line.pattern.fullmatch(short) for short in names):
            raise PortError(f"{line.where}: `skip {line.pattern.pattern}` matches no tensor of the file")


def _why(absent: Sequence[tuple[Rule, str]], names: dict[str, str]) -> str:
    if not absent:
        return " (no rule)"
    rule, name = absent[0]
    return f" ({rule.where} wants {name}{nearest(name, list(names), count=1)})"


def _castable(dtype: np.dtype[Any], entry: NamedVariable) -> bool:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return floating if entry.variable.dtype.is_floating else dtype == entry.variable.dtype.as_numpy_dtype
