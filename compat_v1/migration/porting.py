"""Finds the rules that port the weights of an old project, or proposes some for a model that the user names."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compat_v1.checkpoints.reader import open_source
from compat_v1.graphs.extract import OldVariable
from compat_v1.migration.facts import REFUSALS
from compat_v1.migration.training import list_keys
from compat_v1.porting import port
from engine import models
from engine.errors import InputError
from engine.models.abstract import abstract_variables
from engine.porting.ledger import Ledger, Loaded, Skipped
from engine.porting.plan import take_names
from engine.porting.proposals.proposal import SURE
from engine.porting.proposals.propose import list_entries, propose
from engine.porting.readers.frozen_file import FrozenFile
from engine.porting.rules import detect, language
from engine.porting.rules.language import Rules
from engine.reading import read_file
from engine.selection.variables import name_variables

_EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
_MODEL = re.compile(r"(?:py|keras|vit|cnn):[\w.:/=-]*[\w/]")
_MOST_TRIED = 8


@dataclass(frozen=True)
class Fitting:
    """A rule file whose names fit the weights.

    Attributes:
        name, text: its name for --rules, and its text.
        about: what its first line says.
        target: the first of the models that it names into which every tensor fits; "" if there is none.
        images: the images that such weights were trained on, where the rules say so.
    """

    name: str
    text: str
    about: str
    target: str
    images: str | None


@dataclass(frozen=True)
class Porting:
    """How weights can be ported.

    Attributes:
        fitting: the shipped rules that fit their names.
        problem: why the target that the user named does not fit; "" if it does, or none was named.
        rules: the text of proposed rules, "" if there are none.
        left: what a proposal leaves to the user.
        ledger: the ledger of the port into the target; None if there is none.
    """

    fitting: tuple[Fitting, ...] = ()
    problem: str = ""
    rules: str = ""
    left: tuple[str, ...] = ()
    ledger: dict[str, Any] | None = field(default=None)


def find_porting(source: str, *, target: str | None) -> Porting:
    """Finds the shipped rules that fit a weights file; with a target, plans the port and proposes rules if none fit."""
    with open_source(source) as opened:
        found = detect.find_fitting(port.Weights(opened), tuple(sorted(_EXAMPLES.glob("*.rules"))))
        fitting = tuple(_describe(opened, path, rules, try_targets=target is None) for path, rules in found.items())
        text = fitting[0].text if len(fitting) == 1 else ""
        if target is None:
            return Porting(fitting, rules=text)
        return _plan(opened, port.Weights(opened), target, fitting)


def _describe(opened: Any, path: pathlib.Path, rules: Rules, *, try_targets: bool) -> Fitting:
    text = read_file(path, 1 << 20).decode()
    about = text.partition("\n")[0].strip("# ")
    targets = list_targets(about)[:_MOST_TRIED] if try_targets else []
    target = next((each for each in targets if _fits(opened, rules, each)), "")
    return Fitting(path.stem if path.parent != _EXAMPLES else str(path), text, about, target, rules.images)


def list_targets(about: str) -> list[str]:
    """The models that the first line of a rule file names, after an arrow.

    Example:
        >>> list_targets("ResNet 50, 101 -> py:a.resnet:r50, r101 and r152"), list_targets("B0 to B2 -> py:a.net:b0 to b2")
        (['py:a.resnet:r50', 'py:a.resnet:r101', 'py:a.resnet:r152'], ['py:a.net:b0', 'py:a.net:b1', 'py:a.net:b2'])
        >>> list_targets("Names of PNet -> compat_v1.examples.pnet"), list_targets("timm (safetensors)")
        (['py:compat_v1.examples.pnet:build'], [])
    """
    found: list[str] = []
    for words in re.split(r",\s*|\s+and\s+|\s+\(", about.partition("-> ")[2]):
        first, _, last = words.partition(" to ")
        if re.fullmatch(r"compat_v1\.examples\.\w+", first):
            first = f"py:{first}:build"
        elif re.fullmatch(r"\w+", first) and found:
            first = f"{found[-1].rpartition(':')[0]}:{first}"
        if _MODEL.fullmatch(first) is None:
            continue
        begin, end = re.search(r"\d+$", first), re.search(r"\d+$", last)
        numbers = range(int(begin[0]), int(end[0]) + 1) if begin and end else None
        found += [first] if numbers is None or begin is None else [f"{first[: begin.start()]}{n}" for n in numbers]
    return found


def _fits(opened: Any, rules: Rules, target: str) -> bool:
    """Whether the rules port every tensor into a model."""
    try:
        with abstract_variables():
            network = models.build_network(target)
        variables = name_variables(network)
        weights = port.Weights(take_names(opened, variables, rules))
        port.plan_port(weights, variables, rules, grid=getattr(network, "grid", None))
    except REFUSALS:
        return False
    return True


def _plan(opened: Any, weights: port.Weights, target: str, fitting: Sequence[Fitting]) -> Porting:
    with abstract_variables():
        network = models.build_network(target)
    variables = name_variables(network)
    weights = port.Weights(take_names(opened, variables, None))
    grid = getattr(network, "grid", None)
    why = ""
    for each in fitting:
        rules = detect.get_rules(each.name)
        try:
            planned = port.plan_port(weights, variables, rules, grid=grid)
        except InputError as error:
            why = str(error)
            continue
        return Porting((each,), rules=each.text, ledger=planned.ledger(target=target))
    frozen = opened if isinstance(opened, FrozenFile) else None
    called = frozen.readable_names() if frozen is not None else {}
    meant = {text: name for name, text in called.items()}
    entries = [entry._replace(name=called.get(entry.name, entry.name)) for entry in list_entries(weights)]
    proposal = propose(entries, variables, layout="tf", hidden=weights.hidden)
    proposal = proposal.renamed(lambda name: weights.real(meant.get(name, name)))
    text = proposal.rules_text(
        at_least=SURE, note="Proposed by `frostline migrate`; lines below the bound are comments."
    )
    left = tuple(proposal.left_to_user(at_least=SURE))
    try:
        sure = {line.target: line.confidence for line in proposal.lines if line.confidence >= SURE}
        rules = language.parse_rules(text, name="proposed.rules")
        planned = port.plan_port(weights, variables, rules, grid=grid, confidence=sure)
    except InputError as error:
        return Porting(tuple(fitting), why or str(error), text, left)
    return Porting(tuple(fitting), "", text, left, planned.ledger(target=target))


def account(source: str, variables: Sequence[OldVariable], graph: pathlib.Path | None) -> dict[str, Any]:
    """The ledger of a graph that trains here under its own names; without a graph, everything is still unused."""
    with open_source(source) as opened:
        weights = port.Weights(opened)
        names = weights.source.names()
        keys = list_keys(variables, names)
        loaded = tuple(
            Loaded((key,), node, (), tuple(opened.shape(key)), opened.dtype(key).name) for node, key in keys.items()
        )
        used = set(keys.values())
        hidden = tuple(Skipped(name, why) for name, why in weights.hidden.items() if name not in used)
        left = [name for name in names if name not in used and name not in weights.hidden]
        if graph is not None:
            hidden += tuple(Skipped(name, "the outputs of the graph do not need it") for name in left)
            left = []
        missing = tuple(variable.node for variable in variables if variable.node not in keys)
        rules = "the names of the graph's variables" if graph is not None else ""
        ledger = Ledger(str(opened.path), rules, loaded, hidden, tuple(left), missing)
        return ledger.to_json(target="" if graph is None else f"graph:{os.path.abspath(graph)}")
