"""What the workers of a run agree on: before the first step, and at each checkpoint."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from engine import host
from engine.data import Source
from engine.digests import digest
from engine.distribution.distribution import Distribution
from engine.recipes.computing import Computing
from engine.recipes.config import FinetuneConfig
from engine.selection.variables import ModelVariables
from engine.text import join_some, join_words
from engine.training.checkpoint import Checkpoint
from engine.training.loop import LoopError, Stage
from engine.training.step import TrainStep

# Each worker may have its own: places on its machine, the memory for images, and which of its devices it takes
MAY_DIFFER = frozenset(["out", "cache_dir", "image_cache", "device"])


class DriftError(LoopError):
    """A variable is not the same everywhere, although every replica has trained it alike."""


def agree_on_start(distribution: Distribution, config: FinetuneConfig, found: Checkpoint | None) -> None:
    """Raises DisagreementError if workers have other versions or flags, or resume another checkpoint."""
    if distribution.workers == 1:
        return
    flags = {f"--{name}": value for name, value in config.to_json().items() if name not in MAY_DIFFER}
    checkpoint = None
    if found is not None:
        state = json.dumps(found.state, sort_keys=True)
        checkpoint = f"{found.path.name} (state {hashlib.sha256(state.encode()).hexdigest()[:16]})"
    versions = host.versions() | {"the files of Frostline (SHA-256)": _digest_code()[:16]}
    distribution.agree({"version": versions, "flags": flags, "checkpoint": checkpoint})


def agree_on_job(
    distribution: Distribution,
    computing: Computing,
    source: Source,
    content: tuple[str, Any, str | None],
    stages: Sequence[Stage],
    plan: Mapping[str, Any],
) -> None:
    """Raises DisagreementError if workers compute otherwise, or have other data or phases.

    ``content`` is the fingerprint of the data, the weights of their classes, and the digest of those of their examples.
    """
    fingerprint, class_weights, sample_weights = content
    if distribution.workers == 1:
        return
    data = {
        name: None if part is None else {"examples": len(part), "image shape": list(part.image_shape)}
        for name, part in (("train", source.train), ("eval", source.eval), ("test", source.test))
    }
    data |= {} if class_weights is None else {"class weights": class_weights}
    data |= {} if sample_weights is None else {"sample weights": {"SHA-256": sample_weights[:16]}}
    labels = b"" if source.test is None else source.test.index.tobytes() + source.test.labels.tobytes()
    labels += b"" if source.test is None else b"".join(values.tobytes() for values in source.test.columns.values())
    data["content (SHA-256)"] = {"train and eval": fingerprint[:16], "test labels": hashlib.sha256(labels).hexdigest()[:16]}  # fmt: skip
    distribution.agree(
        {
            "computing": {
                "device": computing.device.kind,
                "XLA": computing.compiles,
                "precision": computing.precision.used,
            },
            "data": data,
            "phases": {
                stage.phase.name: {
                    "steps": stage.phase.step_count(1),
                    "trained": [entry.path for entry in stage.selection.trained],
                    "moving": [entry.path for entry in stage.selection.moving],
                }
                for stage in stages
            },
            "plan": {name: value for name, value in plan.items() if name != "reasons"},
        }
    )


def agree_on_values(distribution: Distribution, variables: ModelVariables, step: TrainStep) -> None:
    """Raises DisagreementError, which names them, if variables, slots or averages differ between workers."""
    if distribution.workers > 1:
        distribution.agree({"value (SHA-256)": {name: text[:16] for name, text in _digests(variables, step).items()}})


def check_drift(distribution: Distribution, variables: ModelVariables, step: TrainStep) -> None:
    """Raises DriftError, on all workers, if a variable, slot or average is not the same on all workers and replicas.

    It names the workers that differ from most of the others, or from the chief where there is no majority.
    """
    if step.replicas is not None and (differing := step.replicas.differing()):
        names = _names(variables, step)
        raise DriftError(
            "replicas have drifted apart: "
            + join_words([f"{names.get(id(variable), variable.name)} on replica {n}" for variable, n in differing])
            + "; the last checkpoint stands"
        )
    if distribution.workers == 1:
        return
    table = _digests(variables, step)
    combined = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    if len(set(distribution.exchange(combined))) == 1:
        return
    tables = distribution.exchange(table)
    drifted: dict[int, list[str]] = {}
    for name in dict.fromkeys(name for each in tables for name in each):
        texts = [each.get(name) for each in tables]
        counts = Counter(texts)
        right = max(counts, key=lambda text: (counts[text], text == texts[0]))
        for worker, text in enumerate(texts):
            if text != right:
                drifted.setdefault(worker, []).append(name)
    parts = [f"{join_some(names)} on {distribution.name(worker)}" for worker, names in sorted(drifted.items())]
    raise DriftError(
        f"workers have drifted apart, in {join_words(parts)} compared with "
        f"{'the others' if len(tables) > 2 else distribution.name(0)}; the last checkpoint stands"
    )


def _digests(variables: ModelVariables, step: TrainStep) -> dict[str, str]:
    """The digests of all variables, slots and averages, by the names that checkpoints give them."""
    found = {entry.path: digest(entry.path, entry.variable.numpy()) for entry in variables}
    found |= {name: digest(name, variable.numpy()) for name, variable in variables.bookkeeping.items()}
    return found | {name: digest(name, array) for name, array in step.arrays()}


def _names(variables: ModelVariables, step: TrainStep) -> dict[int, str]:
    """The names of all variables, slots and averages, by identity."""
    found = {id(entry.variable): entry.path for entry in variables}
    found |= {id(variable): name for name, variable in variables.bookkeeping.items()}
    for path, slots in step.slots.values.items():
        found |= {id(slot): f"optimizer/{path}/{name}" for name, slot in slots.items()}
    averages = {} if step.averages is None else step.averages.values
    return found | {id(average): f"ema/{path}" for path, average in averages.items()}


def _digest_code() -> str:
    """A SHA-256 over the library's own files: a version's number does not tell what a checkout has changed."""
    root = pathlib.Path(__file__).resolve().parents[1]
    hasher = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return hasher.hexdigest()
