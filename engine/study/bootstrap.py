"""Do two strategies differ, or is the test part too small to tell? A paired bootstrap over test examples and seeds.

Both strategies are judged on the same examples, so the difference is taken example by example before anything is averaged:
what both get right or wrong adds no uncertainty. The examples are drawn anew with replacement, and so are the seeds if there
are several, each by itself (Owen: The pigeonhole bootstrap, 2007; the plain bootstrap is that of Efron and Tibshirani: An
Introduction to the Bootstrap, 1993, chapter 13). Deviations of the seeds from their mean are taken sqrt(S / (S - 1)) times,
without which S seeds would seem to spread too little (Rao and Wu, 1988); with two or three seeds the interval is still a
rough one. With one seed it holds for the two trained models, and not for the strategies.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import InputError, check_range

_CELLS = 1 << 22  # of the table of draws that is held at once
_KIND = 100  # draws of an example cost as much as one of a kind, where many pairs share the examples


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two strategies differ on the same test examples.

    Attributes:
        mean: the mean of the first one's values minus that of the second one's.
        low, high: the interval that holds the difference with the probability ``level``.
        level: such as 0.95.
        examples, seeds: how many of each there are.
        differing: the number of examples on which the two differ with any seed.
        resolved: whether these examples and seeds show that there is a difference: the interval does not contain 0, and the
            sign test could show it at all, which takes 6 differing examples at a level of 0.95.
        examples_needed: about how many test examples would show a difference as large as ``mean``; at most ``examples`` just
            where it is ``resolved``. None if no number would: there is no difference, or the seeds spread too much.
    """

    mean: float
    low: float
    high: float
    level: float
    examples: int
    seeds: int
    differing: int
    resolved: bool
    examples_needed: int | None

    def describe(self, first: str, second: str, *, what: str = "accuracy") -> str:
        """A sentence on the two, for a report."""
        between = f"({self.level:.0%} interval {self.low:+.4f} to {self.high:+.4f})"
        if self.resolved:
            better, worse = (first, second) if self.mean > 0 else (second, first)
            return f"The {what} of {better} is {abs(self.mean):.4f} above that of {worse} {between}."
        counted = f"{self.examples:,} test example{'s' if self.examples > 1 else ''}"
        counted += f" and {self.seeds} seeds" if self.seeds > 1 else ""
        text = f"{first} and {second} differ in {what} by less than {counted} can resolve {between}"
        if self.examples_needed is not None:
            return f"{text}; about {self.examples_needed:,} examples would show a difference of {abs(self.mean):.4f}."
        if self.mean and self.seeds > 1:
            return f"{text}; the seeds differ so much that no number of examples would, only more seeds."
        return f"{text}."


def compare(first: Any, second: Any, *, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Difference:
    """Compares two strategies by their values on the same test examples.

    Args:
        first, second: a value for each example, [n] or [seeds, n], such as whether it is right (bool or 0 and 1), or its
            loss. Row s of both comes from runs with the same seed, column i from the same example.
        level: the probability of the interval, above 0 and below 1. Its ends are quantiles of the means of all draws.
        draws: how often examples and seeds are drawn, from 100 to 1,000,000.
        seed: of the draws; the same seed gives the same result, in whatever order the examples are.

    Raises:
        InputError: the shapes differ, there is no example, or a value is not finite.

    Example:
        >>> right = [True] * 90 + [False] * 10
        >>> found = compare(right, [True] * 60 + [False] * 40)
        >>> round(found.mean, 2), found.resolved, compare(right, right).resolved
        (0.3, True, False)
    """
    return compare_all({"first": first, "second": second}, level=level, draws=draws, seed=seed)["first", "second"]


def compare_all(
    values: Mapping[str, Any], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> dict[tuple[str, str], Difference]:
    """Compares each pair of several strategies, once: the earlier one minus the later one.

    Gives what ``compare`` gives for each pair, up to rounding where the values are not 0 and 1. All pairs share their
    draws, so that the time hardly grows with the number of pairs.

    Args:
        values: strategy -> a value for each example, as in ``compare``.
        level, draws, seed: as in ``compare``.

    Raises:
        InputError: as ``compare``; it names the strategies.

    Example:
        >>> found = compare_all({"a": [1, 1, 0, 1], "b": [1, 0, 0, 1], "c": [0, 0, 0, 1]})
        >>> [(pair, difference.mean) for pair, difference in found.items()]
        [(('a', 'b'), 0.25), (('a', 'c'), 0.5), (('b', 'c'), 0.25)]
    """
    check_range("level", level, above=0, below=1)
    check_range("draws", draws, 100, 1_000_000)
    check_range("seed", seed, 0, 2**31 - 1)
    read = {name: _read(name, found) for name, found in values.items()}
    pairs = list(itertools.combinations(read, 2))
    for one, other in pairs:
        if read[one].shape != read[other].shape:
            shapes = f"shapes {list(read[one].shape)} and {list(read[other].shape)}"
            raise InputError(f"{one}, {other}: {shapes}; expected the same seeds and examples in both")
    tables = [read[one] - read[other] for one, other in pairs]
    signs = [
        -1.0 if table.mean() < 0 else 1.0 for table in tables
    ]  # exchanging the two then exchanges the interval's ends
    means = _draw_means([sign * table for sign, table in zip(signs, tables, strict=True)], draws=draws, seed=seed)
    drawn = (sign * mean for sign, mean in zip(signs, means, strict=True))
    return {
        pair: _difference(*both, level=level) for pair, both in zip(pairs, zip(tables, drawn, strict=True), strict=True)
    }


def _difference(table: np.ndarray, means: np.ndarray, *, level: float) -> Difference:
    """What the table [seeds, n] of differences and its means in all draws say."""
    seeds, examples = table.shape
    low, high = (float(end) for end in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    differing = int((table != 0).any(axis=0).sum())
    fewest = 1 - math.log2(1 - level)  # the sign test's probability of k unanimous examples is 2**(1 - k)
    resolved = (low > 0 or high < 0) and differing >= fewest
    return Difference(
        mean=float(table.mean()),
        low=low,
        high=high,
        level=level,
        examples=examples,
        seeds=seeds,
        differing=differing,
        resolved=resolved,
        examples_needed=_count_needed(table, level=level, resolved=resolved, share=differing / examples, fewest=fewest),
    )


def _read(name: str, values: Any) -> np.ndarray:
    """Values as float64 [seeds, n]."""
    found = np.asarray(values)
    if found.dtype.kind not in "biuf" or found.ndim not in (1, 2) or not found.size:
        raise InputError(
            f"{name}: {found.dtype} {list(found.shape)}; expected numbers [n] or [seeds, n], of at least one example"
        )
    found = np.atleast_2d(found).astype(np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(found).all(axis=0))):
        raise InputError(f"{name}: the value of example {wrong[0]} is not finite")
    return found


def _draw_means(tables: Sequence[np.ndarray], *, draws: int, seed: int) -> list[np.ndarray]:
    """The means of tables [seeds, n], all of one shape, in each draw, [draws] each.

    Examples with equal columns are one kind. Where there are few, as with values of 0 and 1, it is drawn how often each
    kind comes, which is multinomial and takes the same time for any number of examples. Otherwise the examples are drawn,
    for all such tables at once; each table has its columns sorted, so that the order of the examples does not matter.
    """
    if not tables:
        return []
    seeds, examples = tables[0].shape
    wider = math.sqrt(seeds / (seeds - 1)) - 1 if seeds > 1 else 0.0
    found, many = [], []
    for table in tables:
        generator, times_of_seeds = _draw_seeds(seeds, draws=draws, seed=seed)  # the same for every table
        drawn, of_seeds = times_of_seeds / seeds, table.mean(axis=1)
        found.append(drawn @ (wider * (of_seeds - of_seeds.mean())))
        kinds, counts = np.unique(table, axis=1, return_counts=True)
        if _KIND * len(counts) > examples:
            many.append((found[-1], np.repeat(kinds, counts, axis=1)))
            continue
        by_kind = drawn @ kinds if seeds > 1 else kinds
        for part in _split(draws, len(counts)):
            times = generator.multinomial(examples, counts / examples, size=part.stop - part.start)
            found[-1][part] += (times * (by_kind[part] if seeds > 1 else by_kind)).sum(axis=1) / examples
    if many:
        generator, times_of_seeds = _draw_seeds(seeds, draws=draws, seed=seed)
        stacked = np.concatenate([table for _, table in many]).T
        for part in _split(draws, examples):
            rows = part.stop - part.start
            chosen = generator.integers(examples, size=(rows, examples)) + examples * np.arange(rows)[:, None]
            times = np.bincount(chosen.reshape(-1), minlength=rows * examples).reshape(rows, examples)
            sums = (times.astype(np.float64) @ stacked).reshape(rows, len(many), seeds)
            for number, (means, _) in enumerate(many):
                means[part] += (times_of_seeds[part] * sums[:, number]).sum(axis=1) / (seeds * examples)
    return found


def _draw_seeds(seeds: int, *, draws: int, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    """How often each seed comes in each draw, [draws, seeds], and the generator for all that follows."""
    generator = np.random.default_rng(seed)
    return generator, generator.multinomial(seeds, [1 / seeds] * seeds, size=draws)


def _split(draws: int, columns: int) -> list[slice]:
    """The draws in parts, so that a table with so many columns stays small."""
    rows = max(1, _CELLS // columns)
    return [slice(start, min(start + rows, draws)) for start in range(0, draws, rows)]


def _count_needed(table: np.ndarray, *, level: float, resolved: bool, share: float, fewest: float) -> int | None:
    """The number of examples N at which |mean| = z sqrt(V / N + W); V is the variance of examples, W that of seeds."""
    seeds, examples = table.shape
    mean, spread = table.mean(), statistics.NormalDist().inv_cdf((1 + level) / 2) ** 2
    of_seeds = table.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    left = mean**2 - spread * of_seeds
    if left <= 0:
        return examples if resolved else None
    needed = max(math.ceil(spread * table.mean(axis=0).var() / left), math.ceil(fewest / share))
    return min(needed, examples) if resolved else max(needed, examples + 1)
