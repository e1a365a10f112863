"""Investigates an old project: its files, weights and graphs, and the ways that lead on from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from compat_v1.graphs.input_text import parse_inputs
from compat_v1.graphs.metagraph import MetaGraph
from compat_v1.migration.commands import Command, Way, count
from compat_v1.migration.facts import GraphFacts, WeightsFacts, describe_graph, describe_weights
from compat_v1.migration.porting import Porting, account, find_porting
from compat_v1.migration.report import Report
from compat_v1.migration.scan import Scan, scan
from compat_v1.migration.training import Chosen, Trial, try_graph, try_parity
from compat_v1.models.switches import parse_graph_inputs
from compat_v1.models.weights import find_checkpoint
from engine.errors import InputError
from engine.porting.readers.graph_file import list_tags
from engine.text import join_some, nearest

_MOST_READ, _MOST_TRIED, _MOST_LEFT = 8, 4, 8
_CHOICE = re.compile(r"the file holds \d+ graphs")  # a graph that is not damaged, but one of several
_UNKNOWN = re.compile(
    r"(inputs|outputs|graph_inputs)=\S+: .* (has no operation|has \d+ outputs)"
)  # what the user named


@dataclass(frozen=True)
class Question:
    """What a user asks of an old project.

    Attributes:
        checkpoint: the checkpoint to look at, by its name; None takes the latest.
        chosen: the tags and endpoints of the graph.
        target: a model to port the weights into; None for none.
        verify: whether every tensor is read, to find damage.
    """

    checkpoint: str | None = None
    chosen: Chosen = field(default_factory=Chosen)
    target: str | None = None
    verify: bool = True


def investigate(old: str | os.PathLike[str], question: Question) -> Report:
    """Finds out what an old project is and which ways lead on from it; nothing of a graph is run.

    Raises InputError if there is nothing of TensorFlow 1, or ``question`` names what is not there. What is damaged is
    part of the report.
    """
    parse_inputs(question.chosen.inputs or "")
    parse_graph_inputs(question.chosen.graph_inputs or "")
    found = scan(old)
    graphs = _describe_graphs(found, question.chosen.tags)
    sources = _list_sources(found, graphs)
    checkpoint = _choose_checkpoint(found, question.checkpoint)
    weights = tuple(describe_weights(source, verify_all=question.verify) for source in sources)
    damaged = {each.source for each in weights if each.damage}
    without = next((each.problem for each in weights if each.problem), "")
    sources = [each.source for each in weights if not each.problem]
    needed = _find_choice(found, checkpoint, sources)
    tried = [] if needed else _try_graphs(graphs, question.chosen, checkpoint)
    unknown = [trials[0].problem for trials in tried if _UNKNOWN.match(trials[0].problem)]
    if unknown and len(unknown) == len(tried):
        raise InputError(unknown[0])
    works = next((trials for trials in tried if not trials[0].problem), next(iter(tried), []))
    refused = [trials[0] for trials in tried if trials[0].problem and trials is not works]
    trial = works[0] if works else None
    own = trial.weights if trial is not None and not trial.problem else _own_source(trial, sources)
    source = None if needed else own or checkpoint or (sources[0] if len(sources) == 1 else None)
    porting = _find_porting(source, question.target) if source is not None and source not in damaged else Porting()
    damage = [item.damage for item in found.items if item.damage]
    damage += [line for each in weights for line in each.damage]
    damage += [each.problem for each in graphs if each.problem and not _CHOICE.search(each.problem)]
    ledger = porting.ledger
    if ledger is None and source is not None and any(each.source == source and each.readable for each in weights):
        done = [each for each in works if not each.problem]
        variables = {variable.node: variable for each in done for variable in each.variables}
        ledger = account(source, list(variables.values()), done[0].path if done else None)
    bad = source in damaged
    ways = (
        _way_of_training(found, works, refused, porting, needed),
        _way_of_porting(source, bad, porting, question.target, weights, needed or without),
        _way_of_parity(works, source, bad, porting, question),
        _way_to_safetensors(source, bad, porting),
    )
    return Report(
        found, weights, graphs, ways, tuple(dict.fromkeys(damage)), ledger, porting.rules, source or checkpoint, needed
    )


def _find_choice(found: Scan, checkpoint: str | None, sources: Sequence[str]) -> str:
    """What the user has to choose, with the candidates: one of several checkpoints or graphs; "" for nothing."""
    if checkpoint is not None:
        return ""
    if len(found.checkpoints) > 1:
        names = [_name(found, prefix) for prefix in found.checkpoints]
        return (
            f"checkpoint=None: {found.root} holds {len(names)} checkpoints, and no file `checkpoint` in it says which is the latest: "
            f"{join_some(names, most=12)}; choose one with --checkpoint=NAME"
        )
    exports = [source for source in sources if not _is_older_export(source, sources)]
    if len(exports) > 1:
        return (
            f"old={found.root}: it holds {len(exports)} graphs with weights of their own: {join_some(exports, most=12)}; name the "
            "file or folder of one of them"
        )
    return ""


def _is_older_export(source: str, sources: Sequence[str]) -> bool:
    """Whether a SavedModel is one of several that were exported to the same place, and not the latest: EXPORT/NUMBER."""

    def place(path: str) -> tuple[str, int]:
        folder, number = os.path.split(os.path.dirname(os.path.dirname(path)))
        return folder, int(number) if number.isdecimal() else -1

    folder, number = place(source)
    return number >= 0 and any(place(other)[0] == folder and place(other)[1] > number for other in sources)


def _name(found: Scan, prefix: str) -> str:
    """A checkpoint as a user names it: relative to the folder."""
    inside = prefix.startswith(f"{found.root}/") and prefix != f"{found.root}/"
    return prefix[len(str(found.root)) + 1 :] if inside else prefix


def _describe_graphs(found: Scan, tags: Sequence[str] | None) -> tuple[GraphFacts, ...]:
    saved = [path for path in found.graphs if path.name.startswith("saved_model.")]
    if tags is not None and not saved:
        raise InputError(f"tags={','.join(tags)}: {found.root} holds no SavedModel; only that has several graphs")
    facts = tuple(describe_graph(path, tags=tags if path in saved else None) for path in found.graphs[:_MOST_READ])
    chosen = [each for each in facts if each.path in saved]
    if tags is not None and all(_CHOICE.search(each.problem) for each in chosen):
        raise InputError(chosen[0].problem)
    return facts


def _list_sources(found: Scan, graphs: Sequence[GraphFacts]) -> list[str]:
    """The weights files: the checkpoints, those of SavedModels, and frozen graphs."""
    sources = list(found.checkpoints)
    for each in graphs:
        if each.path.name.startswith("saved_model."):
            prefix = each.path.parent / "variables" / "variables"
            if prefix.with_name("variables.index").is_file() or (prefix.parent / "variables").is_file():
                sources.append(str(prefix))
        elif each.meta is not None and each.data.get("variables") == 0 and each.path.suffix in (".pb", ".pbtxt"):
            sources.append(str(each.path))
    return list(dict.fromkeys(sources))


def _choose_checkpoint(found: Scan, name: str | None) -> str | None:
    if name is None:
        return found.latest
    every = found.checkpoints
    same = [prefix for prefix in every if name in (_name(found, prefix), prefix) or os.path.abspath(name) == prefix]
    same = same or [prefix for prefix in every if name == os.path.basename(prefix)]
    if len(same) != 1:
        names = [_name(found, prefix) for prefix in every]
        what = (
            "there is no such checkpoint"
            if not same
            else f"{len(same)} checkpoints have this name; give the whole path of one"
        )
        raise InputError(
            f"checkpoint={name}: {what}; {found.root} has {join_some([_name(found, each) for each in same] or names, most=12) or 'none'}{nearest(name, names)}"
        )
    return same[0]


def _try_graphs(graphs: Sequence[GraphFacts], chosen: Chosen, checkpoint: str | None) -> list[list[Trial]]:
    """Builds graphs until one can be trained. That of the chosen checkpoint is tried first, those of others are not."""
    metas: list[MetaGraph] = [each.meta for each in graphs if each.meta is not None]
    own = [meta for meta in metas if checkpoint is not None and find_checkpoint(meta) == checkpoint]
    others = [meta for meta in metas if meta not in own and not (own and meta.path.name.endswith(".meta"))]
    tried = []
    for meta in [*own, *others][:_MOST_TRIED]:
        several = meta.path.name.startswith("saved_model.") and len(list_tags(meta.path)) > 1
        tried.append(try_graph(meta, chosen, checkpoint=checkpoint, several=several))
        if not tried[-1][0].problem:
            break
    return tried


def _own_source(trial: Trial | None, sources: Sequence[str]) -> str | None:
    """The weights of a graph that cannot be trained, if it has its own."""
    place = "" if trial is None else f"{trial.path.parent}/variables/"
    return next(
        (each for each in sources if trial is not None and (each == str(trial.path) or each.startswith(place))), None
    )


def _find_porting(source: str, target: str | None) -> Porting:
    try:
        return find_porting(source, target=target)
    except InputError as error:
        if target is not None:
            raise
        return Porting(problem=str(error))


# ---- the ways


def _way_of_training(
    found: Scan, trials: Sequence[Trial], refused: Sequence[Trial], porting: Porting, needed: str
) -> Way:
    title = "Train the graph here"
    if not trials:
        why = "no graph was found" if not found.graphs else "no graph can be read"
        return Way("train", title, False, needed or why)
    trial = trials[0]
    notes = tuple(f"refused: {each.path}: {each.problem}" for each in refused)
    if trial.problem:
        hint = "" if trial.old is not None else "; --inputs, --outputs and --graph_inputs choose, as for finetune"
        return Way("train", title, False, f"{trial.path}: {trial.problem}{hint}", notes=notes)
    images = next((each.images for each in porting.fitting if each.images), None)
    model = f"--model=graph:{os.path.abspath(trial.path)},preprocess={images or '$PREPROCESS'}"
    words = [("finetune", model, *e.flags, f"--loss={e.loss or '$LOSS'}", "--data=$DATA") for e in trials]
    reason = f"a step of training was built on {trial.path} (not run): {count(len(trial.variables), 'variable')} under the old names"
    if len(trials) == 1:
        commands = [Command((*words[0], "--dry_run")), Command((*words[0], "--out=trained"))]
        return Way("train", title, True, reason, tuple(commands), (*trial.notes, *notes))
    reason += (
        f"; it has {len(trials)} outputs, of which a model has one, so there is a command for each (--outputs chooses)"
    )
    commands = [Command((*each, "--dry_run")) for each in words]
    every = dict.fromkeys(note for each in trials for note in each.notes)
    return Way("train", title, True, reason, tuple(commands), (*every, *notes))


def _way_of_porting(
    source: str | None, damaged: bool, porting: Porting, target: str | None, weights: Sequence[WeightsFacts], why: str
) -> Way:
    title = "Port the weights into a Keras or Frostline model"
    if source is None or damaged:
        why = (
            "the weights cannot all be read, as the section on damage says"
            if damaged
            else why or "no weights were found"
        )
        return Way("port", title, False, why)
    facts = next((each.data for each in weights if each.source == source), {})
    if not facts.get("variables"):
        return Way("port", title, False, f"{source} holds no variables")
    base = ("port-checkpoint", f"--source={_absolute(source)}")
    look = Command(("inspect-checkpoint", f"--source={_absolute(source)}"))
    notes = []
    if facts.get("averages"):
        notes.append("--take_ema takes the moving averages in place of the variables")
    if slots := facts.get("slots"):
        notes.append(f"--slots=auto ports the slots of {slots[0]['optimizer']} too")
    if target is not None:
        how = ("--auto",) if not porting.fitting else (f"--rules={porting.fitting[0].name}",)
        command = Command((*base, f"--target={target}", *how, "--out=ported/weights.npz"))
        if porting.problem:
            notes += [f"left to you: {each}" for each in porting.left[:_MOST_LEFT]]
            if len(porting.left) > _MOST_LEFT:
                notes.append(f"... and {len(porting.left) - _MOST_LEFT} more; the first command lists the tensors")
            reason = f"{target} does not fit as it is: {porting.problem.splitlines()[0].partition(';')[0]}"
            return Way("port", title, None, reason, (look, command), tuple(notes))
        by = f"rules {porting.fitting[0].name}" if porting.fitting else "proposed rules (--auto)"
        return Way(
            "port", title, True, f"every variable of {target} has its source, by {by}", (look, command), tuple(notes)
        )
    if porting.fitting:
        ready = [each for each in porting.fitting if each.target]
        commands = [
            Command((*base, f"--target={each.target or '$TARGET'}", f"--rules={each.name}", "--out=ported/weights.npz"))
            for each in ready or porting.fitting
        ]
        if ready:
            reason = join_some(
                [f"every tensor has its place in {each.target} by the rules {each.name}" for each in ready]
            )
        else:
            listed = join_some([f"{each.name} ({each.about})" for each in porting.fitting])
            reason = f"its names are those of the rules {listed}, but into none of the models that these name everything fits"
        return Way("port", title, True if ready else None, reason, (look, *commands), tuple(notes))
    command = Command((*base, "--target=$TARGET", "--auto", "--dry_run", "--out=ported/weights.npz"))
    reason = porting.problem or (
        "no shipped rules fit its names; for a model that you name, --auto proposes rules from names and shapes (migrate "
        "--target=MODEL tries it)"
    )
    return Way("port", title, None, reason, (look, command), tuple(notes))


def _way_of_parity(
    trials: Sequence[Trial], source: str | None, damaged: bool, porting: Porting, question: Question
) -> Way:
    title = "Prove that a port computes the same (parity)"
    if not trials:
        return Way("parity", title, False, "there is no graph for it, so nothing shows what the original computed")
    problem, flags = try_parity(trials, question.chosen)
    if source is None or damaged:
        problem = "there are no weights that can be read for it"
    if problem:
        return Way("parity", title, False, f"{trials[0].path}: {problem}")
    assert source is not None
    ready = next((each for each in porting.fitting if each.target), next(iter(porting.fitting), None))
    into = question.target or (ready.target if ready else "") or "$TARGET"
    how = f"--rules={ready.name}" if ready else "--auto"
    command = Command(
        ("port-checkpoint", f"--source={_absolute(source)}", f"--target={into}", how, *flags, "--dry_run")
    )
    reason = (
        f"the outputs of {trials[0].path} need only operations that are allowed, and all of their weights are there"
    )
    if question.target is not None and porting.problem:
        return Way("parity", title, None, f"{reason}, but the port into {into} does not fit yet", (command,))
    return Way("parity", title, True, reason, (command,))


def _way_to_safetensors(source: str | None, damaged: bool, porting: Porting) -> Way:
    title = "Leave TensorFlow, as safetensors"
    if source is None or damaged:
        return Way("safetensors", title, False, "there are no weights that can be read")
    base = ("port-checkpoint", f"--source={_absolute(source)}")
    out = ("--names=keras", "--out=safetensors/model.safetensors")
    targets = [each for each in porting.fitting if each.target]
    into = (f"--target={targets[0].target}", f"--rules={targets[0].name}") if targets else ()
    reason = f"under {'the names of Keras' if into else 'its own names'}; --names=timm and --names=hf give those of timm and transformers, where they have the network"
    return Way("safetensors", title, True, reason, (Command((*base, *into, *out)),))


def _absolute(source: str) -> str:
    """The absolute path of a weights file; the prefix of a checkpoint without a name keeps its slash."""
    return os.path.abspath(source) + "/" * source.endswith("/")
