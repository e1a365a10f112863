"""The recommended strategy, in one sentence, with the reasons for the choice.

Each strategy is represented by its fastest run by the engine. A strategy is efficient if no other one is better in time or
gain without being worse in the other. Of the efficient strategies, the cheapest one that reaches ``ENOUGH`` of the largest
gain is recommended. Where the spread of times does not allow a distinction, the larger gain decides, then less memory,
then fewer trained parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.study.formatting import count, duration, percent, quality
from engine.study.quality.rows import leave_out_quality
from engine.text import join_words

ENOUGH = 0.95  # of the largest gain
_ENGINE = ("engine", "engine_cached")
_SIGMAS = 1.96  # the central 95% of a normal distribution


@dataclass(frozen=True)
class Candidate:
    """A strategy with the run that represents it.

    Attributes:
        quality, gain: the accuracy, or loss, of the last evaluation, and its improvement over that before any training.
        seconds, least, most: the time of the whole job: median, minimum and maximum of the repeats.
        memory: the peak memory in bytes, or None.
        parameters: the number of trained parameters.
    """

    strategy: str
    runner: str
    quality: float
    gain: float
    seconds: float
    least: float
    most: float
    memory: float | None
    parameters: int


@dataclass(frozen=True)
class Recommendation:
    """The first thing that a report says.

    Attributes:
        sentence: the recommendation and the main reason for it.
        chosen: the recommended one of the candidates; None where nothing can be recommended.
        reference: the candidate that it is compared with: ``full``, or the one with the largest gain.
        reasons: how the choice was made, a sentence each.
    """

    sentence: str
    chosen: Candidate | None
    reference: Candidate | None
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def by_accuracy(study: Mapping[str, Any]) -> bool:
    """Whether strategies are judged by accuracy rather than by loss."""
    finished = [row for row in study["results"] if not row["failed"]]
    return study["baseline"]["eval_accuracy"] is not None and any(r["eval_accuracy"] is not None for r in finished)


def gain(study: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """How much better a row is than the model before any training; None if the row has no number."""
    key = "eval_accuracy" if by_accuracy(study) else "eval_loss"
    after, before = row[key], study["baseline"][key]
    if after is None or before is None:
        return None
    return after - before if key == "eval_accuracy" else before - after


def find_efficient(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points (cost, gain) that no other point beats: their indices, by rising cost."""

    def beaten(cost: float, good: float) -> bool:
        return any(c <= cost and g >= good and (c < cost or g > good) for c, g in points)

    return sorted((n for n, point in enumerate(points) if not beaten(*point)), key=points.__getitem__)


def find_candidates(study: Mapping[str, Any]) -> list[Candidate]:
    """Finds the run that represents each strategy, in their order; failed runs and broken freeze proofs count for nothing."""
    usable = [row for row in study["results"] if _usable(study, row)]
    ours = [row for row in usable if row["runner"] in _ENGINE] or usable
    best: dict[str, Mapping[str, Any]] = {}
    for row in ours:
        if row["strategy"] not in best or row["job_seconds"] < best[row["strategy"]]["job_seconds"]:
            best[row["strategy"]] = row
    names = dict.fromkeys([*(strategy["name"] for strategy in study["strategies"]), *best])
    return [_candidate(study, best[name]) for name in names if name in best]


def _usable(study: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return (
        not row["failed"]
        and row["freeze_verified"] is not False
        and (row["job_seconds"] or 0) > 0
        and gain(study, row) is not None
    )


def _candidate(study: Mapping[str, Any], row: Mapping[str, Any]) -> Candidate:
    spread = row.get("job_seconds_spread") or {}
    seconds, better = row["job_seconds"], gain(study, row)
    assert better is not None
    return Candidate(
        strategy=row["strategy"],
        runner=row["runner"],
        quality=row["eval_accuracy" if by_accuracy(study) else "eval_loss"],
        gain=better,
        seconds=seconds,
        least=min(seconds, spread.get("least") or seconds),
        most=max(seconds, spread.get("most") or seconds),
        memory=row["peak_rss_bytes"],
        parameters=row["trained_parameters"] or 0,
    )


def recommend(study: Mapping[str, Any]) -> Recommendation:
    """Recommends a strategy of a study by its cost runs, if there is a good one; quality mode has a verdict of its own."""
    study = leave_out_quality(study)
    found = find_candidates(study)
    accuracy = by_accuracy(study)
    what = "accuracy" if accuracy else "loss"
    before = quality(study["baseline"][f"eval_{what}"], accuracy=accuracy)
    reasons = _basis(study, found, what, before)
    if not found:
        return Recommendation("No strategy can be recommended: no run finished.", None, None, reasons, ())
    largest = max(found, key=lambda c: (c.gain, -c.seconds))
    reference = next((c for c in found if c.strategy == "full"), largest)
    if largest.gain <= 0:
        sentence = (
            f"No strategy can be recommended: none made the model better than it was before training ({what} {before}). "
            "Train for longer, or with another learning rate."
        )
        return Recommendation(sentence, None, reference, reasons, tuple(found))
    frontier = [found[number] for number in find_efficient([(c.seconds, c.gain) for c in found])]
    enough = [c for c in frontier if c.gain >= ENOUGH * largest.gain]
    tied = [c for c in found if c.gain >= ENOUGH * largest.gain and c.least <= enough[0].most]
    chosen = min(tied, key=lambda c: (-c.gain, math.inf if c.memory is None else c.memory, c.parameters, c.seconds))
    reasons = (
        *reasons,
        f"The choice is the cheapest strategy on the efficient frontier of time and gain that reaches {ENOUGH:.0%} of the "
        f"largest gain ({largest.strategy}: {what} {quality(largest.quality, accuracy=accuracy)}).",
        *_ties(tied, chosen),
        *_noise(study, found, chosen, accuracy=accuracy),
    )
    sentence = _sentence(found, chosen, reference, what, before, accuracy=accuracy)
    return Recommendation(sentence, chosen, reference, reasons, tuple(found))


def _sentence(
    found: Sequence[Candidate], chosen: Candidate, reference: Candidate, what: str, before: str, *, accuracy: bool
) -> str:
    after = quality(chosen.quality, accuracy=accuracy)
    if chosen != reference and reference.gain > 0:
        return f"{chosen.strategy} achieves {_compare(chosen, reference)}."
    if chosen != reference:
        return (
            f"{chosen.strategy} takes the {what} from {before} to {after} in {duration(chosen.seconds)}, while "
            f"{reference.strategy} does not improve it."
        )
    cheaper = [c for c in found if c.seconds < chosen.seconds]
    if cheaper:
        nearest = max(cheaper, key=lambda c: c.gain)
        if nearest.gain <= 0:
            return f"{chosen.strategy} is worth its cost: no cheaper strategy improves the {what} beyond {before}."
        return (
            f"{chosen.strategy} is worth its cost: the best cheaper strategy, {nearest.strategy}, achieves only "
            f"{_compare(nearest, chosen)}."
        )
    if len(found) > 1:
        return (
            f"{chosen.strategy} achieves the largest gain in the least time: it takes the {what} from {before} to {after} "
            f"in {duration(chosen.seconds)}."
        )
    return (
        f"{chosen.strategy} takes the {what} from {before} to {after} in {duration(chosen.seconds)}; no other strategy "
        "finished, so there is nothing to compare it with."
    )


def _compare(one: Candidate, other: Candidate) -> str:
    gained = math.floor(100 * one.gain / other.gain + 1e-9) / 100  # never rounded up to something that was not reached
    text = f"{percent(gained)} of {other.strategy}'s gain at {percent(one.seconds / other.seconds)} of its time"
    if one.memory is None or not other.memory:
        return text
    return f"{text} and {percent(one.memory / other.memory)} of its memory"


def _basis(study: Mapping[str, Any], found: Sequence[Candidate], what: str, before: str) -> tuple[str, ...]:
    """The meaning of gain, and which runs count."""
    job = study["job"]
    words = "above" if what == "accuracy" else "below"
    reasons = [
        f"The gain is how far the evaluation {what} after the last step lies {words} the {before} measured before any "
        f"training, on {count(job['eval_examples'])} evaluation examples."
    ]
    if found:
        runners = join_words(dict.fromkeys(c.runner for c in found))
        reasons.append(
            f"Each strategy is represented by its fastest run (here by {runners}), timed over the whole job."
        )
    broken = [f"{r['strategy']} by {r['runner']}" for r in study["results"] if r["freeze_verified"] is False]
    if broken:
        reasons.append(f"Not considered, because frozen variables changed: {join_words(broken)}.")
    known = {c.strategy for c in found}
    without = [s["name"] for s in study["strategies"] if s["name"] not in known]
    if without:
        reasons.append(f"Not considered, because no run is usable: {join_words(without)}.")
    if len(found) > 1 and "full" not in known:
        reasons.append(
            "There is no usable run of full, so the strategy with the largest gain takes its place in comparisons."
        )
    return tuple(reasons)


def _ties(tied: Sequence[Candidate], chosen: Candidate) -> list[str]:
    others = [c.strategy for c in tied if c != chosen]
    if not others:
        return []
    return [
        f"Given the spread of the repeats, the time of {chosen.strategy} cannot be distinguished from that of "
        f"{join_words(others)}, so the larger gain decided, then less memory, then fewer trained parameters."
    ]


def _noise(study: Mapping[str, Any], found: Sequence[Candidate], chosen: Candidate, *, accuracy: bool) -> list[str]:
    """Which strategies the measurements cannot distinguish from the chosen one."""
    reasons = []
    if all((row.get("repeats") or 0) < 2 for row in study["results"]):
        reasons.append("There was only one repeat of each run, so the spread of times is unknown.")
    if not accuracy:
        return reasons
    spread = _spreads(study)
    examples = max(study["job"]["eval_examples"], 1)
    near = [c for c in found if c != chosen and abs(c.quality - chosen.quality) <= _unsure(c, chosen, examples, spread)]
    if near:
        cheaper = [c for c in near if c.most < chosen.least]
        resolves = _resolution(chosen, chosen, examples)
        text = (
            f"{count(examples)} evaluation examples resolve differences of about {resolves:.3f} in accuracy, so "
            f"{join_words(c.strategy for c in near)} cannot be distinguished from {chosen.strategy}"
        )
        if cheaper:
            least = min(cheaper, key=lambda c: c.seconds)
            text += f"; the cheapest of these, {least.strategy}, takes {percent(least.seconds / chosen.seconds)} of its time"
        reasons.append(text + ".")
    return reasons


def _resolution(one: Candidate, other: Candidate, examples: int) -> float:
    """The difference between two accuracies that chance alone reaches once in 20 times, if both are binomial.

    That is as if each strategy had been evaluated on separate examples; so it is too wide rather than too narrow.
    """
    shares = [min(max(candidate.quality, 0.0), 1.0) for candidate in (one, other)]
    return _SIGMAS * math.sqrt(sum(share * (1 - share) for share in shares) / examples)


def _unsure(one: Candidate, other: Candidate, examples: int, spread: Mapping[tuple[str, str], float]) -> float:
    """The difference in accuracy below which two cannot be distinguished: by chance, or by the spread of repeats."""
    return max(_resolution(one, other, examples), *(spread.get((c.strategy, c.runner), 0.0) for c in (one, other)))


def _spreads(study: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """(strategy, runner) -> the spread of the last accuracies of its repeats."""
    last: dict[tuple[str, str], list[float]] = {}
    for curve in study["curves"]:
        values = [point["eval_accuracy"] for point in curve["points"] if point["eval_accuracy"] is not None]
        if values:
            last.setdefault((curve["strategy"], curve["runner"]), []).append(values[-1])
    return {key: max(values) - min(values) for key, values in last.items()}
