"""Fine-tune a model under an explicit filter: what the filter names trains, nothing else moves.

Without flags: vit:mini with its pre-trained weights on the embedded Fashion-MNIST, in two phases,
first the head, then the head and the last two blocks. The run directory gets run.json,
metrics.jsonl, curves.png, tensorboard/, checkpoints/, trained.npz and ledger.json.
"""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

from absl import flags

from scripts import cli, finetune_flags

F = flags.FLAGS

# A resume may change these; all other flags decide the course of the run.
_FREE = {
    "out",
    "resume",
    "log_every",
    "checkpoint_every",
    "keep",
    "keep_best",
    "histograms",
    "image_cache",
    "cache_budget",
    "cache_dir",
    "traceback",
}


def main() -> int:
    import tensorflow as tf

    from engine import data, host, models, sizes
    from engine.data import augment
    from engine.feature_cache import policy
    from engine.frostline.watch import frozen_output_norms
    from engine.runs import picture, run_directory
    from engine.runs.progress import Progress
    from engine.selection.variables import name_variables
    from engine.training import checkpoint, evaluation, losses, optimizers, precision
    from engine.training.loop import Loop, LoopError, Outcome, State
    from engine.training.phases import Evaluation
    from engine.training.step import TrainStep
    from scripts import finetune_end, finetune_phases, finetune_text

    finetune_flags.check_numbers()
    stop = cli.StopSignal()
    tf.keras.utils.set_random_seed(F.seed)
    if F.deterministic:
        tf.config.experimental.enable_op_determinism()

    # ---- data, model, loss
    numbers = precision.parse(F.precision)
    size = None if F.image_size is None else data.parse_image_size(F.image_size)
    if size is None and F.data.startswith("folder:"):
        size = models.default_image_size(F.model)
    source = data.open_data(
        F.data,
        eval_fraction=F.eval_fraction,
        train_examples=F.train_examples,
        image_size=size,
        bad_images=F.bad_images,
        image_cache=sizes.parse_bytes(F.image_cache, name="image_cache"),
    )
    outputs = source.outputs(F.loss)
    model = models.build_model(
        F.model,
        image_shape=source.image_shape,
        outputs=outputs,
        head=F.head,
        logits=F.loss != "mse",
        seed=F.seed,
        dtype=numbers.variables,
        compute=numbers.compute,
    )
    variables = name_variables(model.network)
    loss_fn = losses.supervised_loss(model.network, F.loss, label_smoothing=F.label_smoothing)
    _check_outputs(source, model)
    per_epoch = data.TrainBatches(source.train, batch_size=F.batch_size).per_epoch

    # ---- what trains: every filter is resolved before anything runs
    stages = finetune_phases.stages(variables, finetune_phases.asked(model.upper, per_epoch), model.statistics)

    def make_step(micro_batch_size: int | None, remat: str) -> TrainStep:
        return TrainStep(
            loss_fn,
            stages[0].optimizer,
            seed=F.seed,
            micro_batch_size=micro_batch_size,
            remat=remat,
            loss_scale=precision.LossScale() if numbers.scaled else None,
            ema=F.ema,
            nonfinite=F.nonfinite,
        )

    make_step(None, F.remat or "none")  # its complaints come before the weights are read
    settings = _settings(source)

    # ---- weights: a checkpoint, else the flag
    out = pathlib.Path(
        F.out
        or f"runs/{datetime.datetime.now():%Y%m%d-%H%M%S}-{F.model.replace(':', '-').replace('/', '-').split(',')[0]}"
    )
    if F.resume and F.out is None:
        raise run_directory.RunDirectoryError("resume: --out=FOLDER says which run")
    found = run_directory.find_resumable(out, resume=F.resume, settings=settings, warn=print)
    state, ledger = State(), None
    images = None
    if found is not None:
        checkpoint.restore(found, variables)
        state, images = State.from_json(found.state["loop"]), found.state["decided"]["images"]
        print(f"weights: {found.path}, {state.step} steps trained")
    elif F.rules is None and model.load is not None and (loaded := model.load(F.weights)) is not None:
        print(f"weights: {loaded}")
    elif F.weights == "none" or (F.weights == "auto" and model.shipped_weights is None):
        print("weights: random" + ("" if F.weights == "none" else f" (none ship with {F.model})"))
    else:
        ledger = _port(model, source)
        images = None if model.images_chosen else ledger.images
    if F.resume and found is None:
        print(f"resume: {out} holds no checkpoint; starting at step 0")

    normalise = model.normalise if images is None else models.images_as(images, source.image_shape)
    batches = data.TrainBatches(
        source.train, batch_size=F.batch_size, seed=F.seed, augment=augment.parse(F.augment), normalise=normalise
    )

    # ---- how steps are computed
    plan, step, stages = finetune_text.make(
        make_step,
        stages,
        batches.at(0),
        saved=found.state["decided"]["plan"] if found is not None else None,
        blocks=optimizers.entry_count(variables),
        with_blocks=lambda number: finetune_phases.stages(
            variables, [finetune_phases.top(number, per_epoch)], model.statistics
        ),
    )
    if found is not None:
        step.restore(variables, found.state["step"], found.arrays)
    elif ledger is not None and F.slots == "continue":
        _continue_slots(step, stages[0])

    print(f"model:   {F.model}, {variables.parameters:,} parameters in {len(variables)} variables")
    for note in model.notes:
        print(f"         {note}")
    if images is not None:
        print(f"         images are given as such weights want them ({images}; the option preprocess= says otherwise)")
    test = f", {len(source.test)} test" if source.test else ""
    skipped = f"; {len(source.skipped)} bad images skipped" if source.skipped else ""
    print(f"data:    {source.name}, {len(source.train)} train, {len(source.eval)} evaluation{test} examples{skipped}")
    for stage in stages:
        print(
            f"\nphase {stage.phase.name}: {stage.phase.step_count(per_epoch)} steps, learning rate {stage.learning_rate:g}"
        )
        print(stage.selection.table())
    print()
    caveats = list(dict.fromkeys(caveat for stage in stages for caveat in step.caveats(stage.selection)))
    finetune_text.describe(plan, stages, caveats)

    # ---- what is below the frost line, and whether it is computed once
    evaluator = evaluation.Evaluator(loss_fn, watch=frozen_output_norms)
    eval_size = plan.micro_batch_size or (F.batch_size if F.memory_budget is not None else max(F.batch_size, 64))
    eval_every = F.eval_every or per_epoch
    cache = policy.CachePolicy(
        step,
        evaluator,
        train=batches,
        evaluation=data.EvalBatches(source.eval, batch_size=eval_size, normalise=normalise),
        data=source.fingerprint(),
        options=policy.CacheOptions(
            mode=F.cache,
            root=pathlib.Path(F.cache_dir or out.parent / "feature_cache"),
            dtype=F.cache_dtype,
            views=F.cache_views,
            budget=sizes.parse_bytes(F.cache_budget, name="cache_budget"),
        ),
        stop=stop,
    )
    choices = cache.decide(
        stages,
        per_epoch=per_epoch,
        eval_every=eval_every,
        saved=found.state["decided"].get("cache") if found is not None else None,
        look=F.dry_run,
    )
    finetune_text.describe_cache(stages, choices)
    if F.dry_run:
        return cli.DONE
    print()

    # ---- the loop
    def measure(stage: Any, given: Any, watched: Any = None) -> Any:
        with step.evaluating(variables):
            return evaluator(stage.selection, given, watched=watched)

    def record(stage: Any, steps: int) -> Evaluation:
        result = measure(stage, *cache.evaluation())
        return Evaluation(
            steps, stage.phase.name, result.loss, result.metrics.get("accuracy"), result.frozen_output_norm
        )

    keeping = run_directory.Keeping(
        log_every=F.log_every,
        checkpoint_every=F.checkpoint_every or per_epoch,
        keep=F.keep,
        keep_best=F.keep_best,
        histograms=F.histograms,
    )
    directory = run_directory.RunDirectory(
        out,
        step=step,
        variables=variables,
        settings=settings,
        keeping=keeping,
        monitor=F.monitor,
        decided={"plan": plan.to_json(), "images": images, "cache": [choice.used for choice in choices]},
        from_step=state.step if found is not None else None,
        ledger=None if ledger is None else ledger.to_json(target=F.model),
    )
    directory.draw_lines(
        [picture.Panel(s.phase.name, s.selection, c.line) for s, c in zip(stages, choices, strict=True)]
    )
    total = sum(stage.phase.step_count(per_epoch) for stage in stages)
    progress = Progress(total, start=state.step, log_every=F.log_every)
    cache.shows = progress.reaching
    loop = Loop(
        step=step,
        stages=stages,
        batches=cache.batches,
        per_epoch=per_epoch,
        evaluate=record,
        eval_every=eval_every,
        actions=(progress, cache, directory.action),
        early_stop=F.early_stop,
        monitor=F.monitor,
        stop=stop,
    )
    code, reason = cli.DONE, ""
    try:
        outcome = loop.run(state)
        reason = outcome.reason
        if reason == "stopped":
            code, reason = cli.STOPPED, f"stopped by {stop.name}; --resume goes on"
    except LoopError as error:
        code, reason = cli.FAILED, str(error)
        outcome = Outcome("failed", state)
    finally:
        progress.close()

    # ---- the end: the test part, the proof, the files
    final = {}
    if code == cli.DONE and source.test is not None:
        tested = measure(stages[-1], data.EvalBatches(source.test, batch_size=eval_size, normalise=normalise))
        final = finetune_end.tested(tested, source.test, source.classes)
    facts = {
        "flags": cli.own_flags(finetune_flags.__name__),
        "versions": host.versions() | {"deterministic": str(F.deterministic)},
        "model": {"name": F.model, "parameters": variables.parameters},
        "data": {
            "name": source.name,
            "train_examples": len(source.train),
            "eval_examples": len(source.eval),
            "classes": len(source.classes),
            "class_names": list(source.classes),
            "image_shape": list(source.image_shape),
            "skipped_images": len(source.skipped),
            "skipped": list(source.skipped[:20]),
        },
    }
    proof_broken = any(outcome.state.proven)
    if proof_broken and code == cli.DONE:
        code, reason = cli.FAILED, "frozen variables changed"
    run = directory.finish(
        outcome,
        stages=stages,
        per_epoch=per_epoch,
        forecasts=plan.forecasts,
        facts=facts,
        cache=cache.facts(),
        final=final,
        code=code,
        reason=reason,
    )
    finetune_end.describe(run, outcome.state.evaluations, out)
    return code


def _port(model: Any, source: Any) -> Any:
    """Loads the shipped weights, or the file that --weights names; says so and returns the ledger."""
    from engine import porting

    shipped = F.weights == "auto"
    file = model.shipped_weights if shipped else pathlib.Path(F.weights)
    try:
        ledger = porting.load(model.network, file, F.rules)
    except porting.PortError as error:
        if not shipped:
            raise
        height, width, channels = source.image_shape
        raise porting.PortError(
            f"weights='auto': the weights that ship with {F.model.split(',')[0]} are for {model.shipped_for}; they do "
            f"not fit --model={F.model} on images of {height}x{width} with {channels} channel{'s'[: channels - 1]}. "
            "--weights=none starts from random weights (--train=@all then trains all of them); --weights=FILE takes "
            f"others, --model another network, such as keras:MobileNetV2.\n{error}"
        ) from None
    print(f"weights: {file.name}, {ledger.summary()}")
    return ledger


def _continue_slots(step: Any, stage: Any) -> None:
    """Takes over the optimizer slots that the file of --weights holds for the first phase, and says what it did."""
    from engine import porting

    if F.weights != "auto":
        with porting.open_tensors(F.weights) as file:
            said = porting.continue_from(file, step.slots, stage.selection, stage.optimizer)
        if said is not None:
            print(f"slots:   {said}")


def _settings(source: Any) -> dict[str, Any]:
    """What decides the course of a run: a resume must not contradict it."""
    own = {name: value for name, value in cli.own_flags(finetune_flags.__name__).items() if name not in _FREE}
    return own | {"data (SHA-256)": source.fingerprint()}


def _check_outputs(source: Any, model: Any) -> None:
    """The labels must be classes, or columns, that the model has."""
    from engine.data.source import DataError, check_labels

    if F.loss == "softmax":
        for name in ("train", "eval", "test"):
            part = getattr(source, name)
            if part is not None:
                check_labels(source.name, f"{name}_labels", part.labels, model.outputs)
    elif model.outputs != (wanted := source.outputs(F.loss)):
        raise DataError(
            f"model={F.model!r}: it has {model.outputs} outputs; loss {F.loss} on {source.name} wants {wanted}"
        )


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=finetune_flags.__name__)


if __name__ == "__main__":
    run()
