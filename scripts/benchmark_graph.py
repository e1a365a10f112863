"""Time one step of an old graph: the engine against a Session that runs the graph's own train op.

Each runner has a process of its own and is told when to do a step; the order is reversed after each round, and ratios are
taken round by round. Both begin from the checkpoint, and their first losses must agree, except where a graph draws random numbers. The Session runs what the loss and
the train op need, after a check that this computes and changes variables and does nothing else. Its peak memory includes
reading the checkpoint, as a Saver does.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from engine.errors import InputError, check_range
from engine.host import quantiles

from . import cli

F = flags.FLAGS

flags.DEFINE_string("graph", None, "A .meta file that holds the training graph.")
flags.DEFINE_string("checkpoint", None, "The prefix of its checkpoint (default: what lies beside it).")
flags.DEFINE_string("inputs", None, "The tensor that is fed with images, as in finetune.")
flags.DEFINE_string("outputs", None, "The tensor with the outputs of the network.")
flags.DEFINE_string("loss", None, "The tensor with the loss.")
flags.DEFINE_string("train_op", None, "The operation that trains (default: the only one in the collection train_op).")
flags.DEFINE_string(
    "feed",
    None,
    "An .npz file with one array for each tensor that is fed, under its name; a single number is a constant.",
)
flags.DEFINE_string("train", "@all", "Filter: what the engine trains; it should be what the train op trains.")
flags.DEFINE_string("optimizer", "sgd", "The optimizer of the engine, as in finetune.")
flags.DEFINE_float("learning_rate", 1e-3, "The learning rate of the engine; the graph has its own.")
flags.DEFINE_integer("rounds", 20, "The number of timed rounds; in each, both runners do one step.")
flags.DEFINE_integer("warmup", 3, "The number of rounds before these, which are not timed, at least 1.")
flags.DEFINE_float("patience", 600.0, "The seconds after which a runner that has not answered is stopped.")
flags.DEFINE_string(
    "out", None, "A .json file for the results (times in ms, memory in bytes); by default none is written."
)
_NEEDED = ("graph", "inputs", "outputs", "loss", "feed")


def main() -> int:
    for name in _NEEDED:
        if F[name].value is None:
            raise InputError(f"{name}: --{name} is needed; --help explains it")
    check_range("rounds", F.rounds, 1, 100_000)
    check_range("warmup", F.warmup, 1, 100_000)
    cli.check_out(F.out)
    cli.import_tensorflow()

    from compat_v1.graphs.metagraph import read_metagraph
    from compat_v1.models.weights import find_checkpoint

    from .baselines.harness import BenchmarkError
    from .baselines.old_graph import GraphJob
    from .baselines.turns import Participant, Process, take_turns

    meta = read_metagraph(F.graph)
    train_ops = [F.train_op] if F.train_op else list(dict.fromkeys(meta.names("train_op")))
    if len(train_ops) != 1:
        raise InputError(f"train_op: {F.graph} names {len(train_ops)} train ops; say which with --train_op")
    checkpoint = F.checkpoint or find_checkpoint(meta)
    if checkpoint is None:
        raise InputError(f"checkpoint: none lies beside {F.graph}; --checkpoint=PREFIX names it")
    job = GraphJob(train_op=train_ops[0], checkpoint=checkpoint, **{name: F[name].value for name in (
        *_NEEDED, "train", "optimizer", "learning_rate")})  # fmt: skip

    def start(target: str) -> Any:
        return lambda: Process(
            f"{__package__}.baselines.old_graph:{target}", job, tensorflow=True, environment={}, patience=F.patience
        )

    both = [Participant(name.lower(), "float32", start(name), required=True) for name in ("Engine", "Session")]

    def check() -> None:
        mine, theirs = (one.first_loss for one in both)
        if (
            not both[0].facts.get("random")
            and mine is not None
            and theirs is not None
            and abs(mine - theirs) > 1e-5 * abs(theirs)
        ):
            raise BenchmarkError(f"the losses of the first step do not agree: {mine!r} and {theirs!r}")

    take_turns(both, warmup=F.warmup, rounds=F.rounds, check=check, after=_tell, say=print, cost=False)
    if failed := [f"{one.name}: {one.failed}" for one in both if one.failed is not None]:
        raise BenchmarkError("; ".join(failed))
    rows = _rows(both)
    _print(rows)
    cli.write_out(rows)
    return cli.DONE


def _tell(number: int) -> None:
    if number >= 1:
        print(f"round {number} of {F.rounds}", flush=True)


def _rows(both: list[Any]) -> list[dict[str, Any]]:
    """One row for each runner, with the ratio of the engine to the Session in the first."""
    rows = []
    for one in both:
        row: dict[str, Any] = {"runner": one.runner, "peak_rss_bytes": one.peak_rss_bytes, "facts": one.facts}
        for key, scale in (("seconds", 1e3), ("cpu_seconds", 1e3)):
            row[key.replace("seconds", "ms")] = quantiles([scale * step[key] for step in one.steps])
        rows.append(row)
    for key in ("seconds", "cpu_seconds"):
        pairs = zip(both[0].steps, both[1].steps, strict=True)
        rows[0]["ratio_" + key] = quantiles([mine[key] / theirs[key] for mine, theirs in pairs if theirs[key]])
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    print("\nrunner    step ms     p10     p90  CPU ms  peak MiB")
    for row in rows:
        ms, cpu = row["ms"], row["cpu_ms"]
        print(
            f"{row['runner']:8}  {ms['median']:7.2f} {ms['p10']:7.2f} {ms['p90']:7.2f} {cpu['median']:7.2f}  "
            f"{row['peak_rss_bytes'] / 2**20:8.0f}"
        )
    for key, what in (("ratio_seconds", "by the clock"), ("ratio_cpu_seconds", "CPU seconds")):
        ratio = rows[0][key]
        print(f"engine to Session, {what}: {ratio['median']:.3f} ({ratio['p10']:.3f} to {ratio['p90']:.3f})")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
