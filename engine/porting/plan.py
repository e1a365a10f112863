"""Resolves a port on names and shapes, so that every variable and every tensor is accounted for before data are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.porting.both_sides import Differences
from engine.porting.errors import PortError
from engine.porting.ledger import Skipped
from engine.porting.readers import partitions
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.readers.source import TensorSource
from engine.porting.rules import transforms
from engine.porting.rules.language import Rule, Rules
from engine.porting.rules.transforms import Spec, Target
from engine.porting.slot_names import AVERAGE
from engine.selection.variables import NamedVariable
from engine.text import nearest
from engine.training.checkpoint_names import describe_whole_files

ABSENT = "not in the file"  # why a variable of the head is fresh, if the file has nothing for it


@dataclass(frozen=True)
class Assignment:
    """One variable, the tensors it is made from, and the rule that says so."""

    entry: NamedVariable
    sources: tuple[str, ...]
    rule: Rule
    target: Target
    done: tuple[str, ...] = ()  # the transforms that have an effect on these shapes


@dataclass
class Plan:
    """What a load will do. A plan with ``missing``, ``unused`` or ``wrong`` lines is not carried out."""

    assignments: list[Assignment] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, source: TensorSource, rules: Rules) -> None:
        """Raises PortError, listing both sides, unless everything is accounted for."""
        if difference := Differences(tuple(self.missing), tuple(self.unused), tuple(self.wrong)):
            hint = ""
            if self.assignments and self.missing and not self.unused and not self.wrong:
                hint = (
                    "; if a run wrote it, it holds what the run trained, and a checkpoint of the run is whole "
                    f"({describe_whole_files(source.path.parent)}); BASE+{source.path} puts it onto the weights from "
                    "which the run started"
                )
            raise PortError(f"{source.path}: the file does not fit the model (rules: {rules.name}){hint}{difference}")


def build_plan(
    entries: Iterable[NamedVariable], source: TensorSource, rules: Rules, *, grid: tuple[int, int] | None = None
) -> Plan:
    """Decides for every variable what it is made from, and for every tensor where it goes.

    Of the source, only names, shapes and dtypes are used. ``grid`` is the model's patch grid (rows, columns). Raises
    PortError if two rules apply to one variable, if a rule or skip matches nothing, or if two names are equal without
    their prefix.
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
            raise PortError(
                f"{deciding[1]}: this is a second rule for the variable {entry.path}; the first is {deciding[0]}"
            )
        if lines:
            plan.fresh[entry.path] = lines[0].where
        elif found:
            rule, sources = found[0]
            taken |= set(sources)
            _fit(plan, Assignment(entry, sources, rule, Target(tuple(entry.variable.shape), grid)), source)
        elif "head" in entry.groups:
            plan.fresh[entry.path] = ABSENT
        else:
            plan.missing.append(f"{entry.path} {list(entry.variable.shape)}{_why(absent, names)}")
    _check_lines(rules, matched, names)
    rest = {short: name for short, name in names.items() if name not in taken}
    _leftovers(plan, rest, aliases, rules)
    return plan


def take_names(source: TensorSource, entries: Iterable[NamedVariable], rules: Rules | None = None) -> TensorSource:
    """Returns the source with partitioned tensors left in parts where the rules, or the model's own paths, name a part.

    Elsewhere they stay whole (engine.porting.readers.partitions). Of a frozen graph, constants that are not known to be weights
    are shown where they are named.
    """
    if isinstance(source, FrozenFile):
        source.show(_find_named(list(entries), rules, source.hidden()))
    if not isinstance(source, partitions.Merged):
        return source
    entries = list(entries)
    parts = [part for each in source.parts.values() for part in each.names]
    taken = {path for entry in entries for path in entry.paths}
    if rules is None:
        return partitions.leave_apart(source, lambda _, part: part in taken)
    taken |= find_meant(entries, rules, parts)
    whole_meant = find_meant(entries, rules, source.parts)

    def is_apart(whole: str, part: str) -> bool:
        names = [rules.without_prefix(name) for name in (whole, part)]
        skipped = [any(line.pattern.fullmatch(name) for line in rules.skip) for name in names]
        return part in taken or (whole not in whole_meant and skipped == [False, True])

    return partitions.leave_apart(source, is_apart)


def _find_named(entries: Sequence[NamedVariable], rules: Rules | None, names: Collection[str]) -> set[str]:
    """Returns those of these names that the rules, or without any the model's own paths, name."""
    if rules is not None:
        return find_meant(entries, rules, names)
    return {path for entry in entries for path in entry.paths} & set(names)


def find_meant(entries: Iterable[NamedVariable], rules: Rules, names: Iterable[str]) -> set[str]:
    """Returns those of these names of a source from which the rules make a variable."""
    short = {rules.without_prefix(name): name for name in names}
    return {
        short[wanted]
        for entry in entries
        for path in entry.paths
        for rule in rules.rules
        if (match := rule.pattern.fullmatch(path))
        for wanted in rule.expand(match, short)
        if wanted in short
    }


def _short_names(source: TensorSource, rules: Rules) -> dict[str, str]:
    """Returns the source names as the rules see them -> as they are in the file."""
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
    """Returns the rules that apply to a variable, with their tensors, and those that lack a tensor, with its name."""
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


def _fit(plan: Plan, assignment: Assignment, source: TensorSource) -> None:
    """Adds an assignment to the plan if its result has the variable's shape and a type that can become its type."""
    variable, rule = assignment.entry.variable, assignment.rule
    specs = [Spec(source.shape(name), source.dtype(name)) for name in assignment.sources]
    result, done, problem = transforms.infer_spec(specs, rule.transforms, assignment.target)
    shape = list(variable.shape)
    came = f" (from {' | '.join([' + '.join(str(list(spec.shape)) for spec in specs), *done])})" if done else ""
    if result is None:
        reason = f"{problem}{came}; {shape} in the model"
    elif result.shape != assignment.target.shape:
        reason = f"{list(result.shape)} in the file{came}, {shape} in the model"
    elif _castable(result.dtype, assignment.entry):
        plan.assignments.append(replace(assignment, done=done))
        return
    else:
        reason = f"{result.dtype.name} in the file, {variable.dtype.name} in the model"
    other_shape = result is None or result.shape != assignment.target.shape
    if "head" in assignment.entry.groups and other_shape:
        plan.fresh[assignment.entry.path] = reason
        plan.skipped += [
            Skipped(name, f"{rule.where}: the head {assignment.entry.path} stays fresh") for name in assignment.sources
        ]
    else:
        plan.wrong.append(f"{assignment.entry.path}: {reason} ({rule.where}: {' + '.join(assignment.sources)})")


def _leftovers(plan: Plan, rest: Mapping[str, str], aliases: Mapping[str, str], rules: Rules) -> None:
    """Accounts for the tensors that no rule took: skipped, another name of a shared variable, or else unused."""
    skipped = {entry.name for entry in plan.skipped}
    averages = {rules.without_prefix(name) for made in plan.assignments for name in made.sources if AVERAGE in name}
    for short, name in rest.items():
        line = next((line for line in rules.skip if line.pattern.fullmatch(short)), None)
        if line is not None:
            plan.skipped.append(Skipped(name, line.where))
        elif f"{short}/{AVERAGE}" in averages:
            plan.skipped.append(Skipped(name, "its average is used"))
        elif short in aliases and any(assignment.entry.path == aliases[short] for assignment in plan.assignments):
            plan.skipped.append(Skipped(name, f"another name of {aliases[short]}"))
        elif name not in skipped:
            rule = next((rule for rule in rules.rules if rule.could_give(short)), None)
            plan.unused.append(name + (f" ({rule.where}: for {rule.pattern.pattern})" if rule else ""))


def _check_lines(rules: Rules, matched: set[str], names: Mapping[str, str]) -> None:
    """Every line without `?` must match something; otherwise it is misspelt or written for another model."""
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
    return f" ({rule.where} expects {name}{nearest(name, list(names), count=1)})"


def _castable(dtype: np.dtype[Any], entry: NamedVariable) -> bool:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return floating if entry.variable.dtype.is_floating else dtype == entry.variable.dtype.as_numpy_dtype
