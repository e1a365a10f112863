"""Fine-tune a model under an explicit filter: what the filter names trains, and nothing else moves.

Without flags: vit:mini with its pre-trained weights on the embedded Fashion-MNIST, in two phases: first the head, then
the head and the last two blocks. The run directory gets run.json, metrics.jsonl, curves.png, frostline.png,
tensorboard/, checkpoints/, trained.npz and ledger.json.
"""

from __future__ import annotations

import os
import sys

from engine import locks, part_times
from engine.distribution.cluster import read_cluster
from engine.runs import existing

from . import cli, finetune_flags


@part_times.collect(since_start=True)
def main() -> int:
    config = finetune_flags.config()  # bad flags are refused before TensorFlow is imported, and so is a folder in use
    if config.distribute == "multiworker":
        read_cluster(
            os.environ
        )  # a folder in use is refused when all have come, so that none waits for a chief that has ended
    elif config.out:
        if not config.dry_run:
            locks.check_free(config.out)
        existing.check_out(config.out, resume=config.resume)
    with part_times.part("imports"):
        if config.distribute == "multiworker":  # what the end of another worker breaks is told in one sentence
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        alone = config.distribute == "none"
        cli.import_tensorflow(start=alone, keras=cli.needs_keras(config.model), device=config.device)
        from engine.recipes.finetune import finetune

        from .finetune_text import PrintingListener, print_end, print_times

    result = finetune(config, listener=PrintingListener(config))
    if config.dry_run and result.distribution.is_chief:
        print_times(part_times.finish() or {})
    elif result.distribution.is_chief:
        print_end(result)
    elif result.code:
        print(f"finetune: {result.reason}", file=sys.stderr)
    return result.code


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=finetune_flags.__name__)


if __name__ == "__main__":
    run()
