"""Port a checkpoint of TensorFlow 1 (or any weights file) into a model, with a ledger in which nothing is unexplained.

Rules say what becomes what (--rules), or are proposed from names and shapes (--auto). --out is an .npz file that finetune
takes as --weights, or a Keras .weights.h5; ledger.json lies beside it. --verify_graph runs the old graph and the new
model on the same input. --reverse goes back: weights into a checkpoint that the old graph's own Saver restores.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from typing import Any

from absl import flags

from scripts import cli

F = flags.FLAGS

flags.DEFINE_string(
    "source",
    None,
    "The checkpoint: a prefix, one of its files, its folder, a SavedModel; or an .npz, safetensors or Keras file. With --reverse, the weights to go back with.",
)
flags.DEFINE_string(
    "target",
    None,
    "The model, as finetune's --model: vit:SIZE/PATCH, cnn:mini, keras:NAME, file:X.keras, py:module:factory (any Keras model or tf.Module, with several outputs too); the option classes=N says how many outputs a head has (1000 unless given; a py: factory's own).",
)
flags.DEFINE_string(
    "image_size",
    None,
    "Of the model's images, in pixels: N or HEIGHTxWIDTH (unless given, what the model is made for).",
)
flags.DEFINE_integer("channels", 3, "Of the model's images.")
flags.DEFINE_string("rules", None, "Which tensor becomes which variable: a rule file, or the name of a shipped one.")
flags.DEFINE_bool(
    "auto",
    False,
    "Propose the rules from names and shapes. They are written beside --out as .rules, a confidence on every line.",
)
flags.DEFINE_bool("yes", False, "With --auto: also take lines with a confidence below 0.8.")
flags.DEFINE_bool("take_ema", False, "Take the exponential moving averages of variables that have one.")
flags.DEFINE_string(
    "slots",
    None,
    "Also port the optimizer's slots: Adam, Momentum, RMSProp, Adagrad, or auto for the only one that there is (unless given, none).",
)
flags.DEFINE_integer("adam_step", None, "Steps that the optimizer has made, where nothing in the file tells.")
flags.DEFINE_float("beta1", 0.9, "Of the Adam that made the slots: its step count is told by its powers.")
flags.DEFINE_float("beta2", 0.999, "As --beta1.")
flags.DEFINE_string(
    "verify_graph", None, "The old graph (.meta, or a SavedModel): run it and the new model on the same input."
)
flags.DEFINE_string(
    "inputs",
    None,
    "Of the old graph, comma-separated: tensors that are fed, in the order of the model's inputs, and NAME=VALUE for what has a value, as in images,is_training=False (unless given, the only placeholder).",
)
flags.DEFINE_string(
    "outputs",
    None,
    "Of the old graph, comma-separated, in the order of the model's outputs: TENSOR, TENSOR=KEY of the model's, TENSOR | reshape(-1, 2) for another layout (unless given, the only candidate).",
)
flags.DEFINE_string("feed", None, "An .npz file with values for --inputs by name (unless given, seeded random values).")
flags.DEFINE_integer("examples", 4, "Batch size of the seeded input.")
flags.DEFINE_integer("seed", 0, "Of the seeded input.")
flags.DEFINE_float("bound", 1e-5, "Largest difference that --verify_graph allows, absolute on outputs of unit scale.")
flags.DEFINE_bool(
    "dry_run",
    False,
    "Decide and print everything; write nothing but ledger.json (and proposed rules), where --out says.",
)
flags.DEFINE_bool(
    "reverse",
    False,
    "Write --source (weights of --target) into a checkpoint of TensorFlow 1, by the same rules backwards.",
)
flags.DEFINE_string(
    "base",
    None,
    "With --reverse: the old checkpoint. What did not change, and what no rule touches, is copied from it bit for bit.",
)
flags.DEFINE_string(
    "graph", None, "With --reverse: the old graph (.meta); every key that its Saver restores must be in the checkpoint."
)
flags.DEFINE_enum("format", "V2", ["V1", "V2"], "With --reverse: the checkpoint's format.")
flags.DEFINE_string(
    "out", None, "FILE.npz or FILE.weights.h5; with --reverse, a checkpoint's prefix. ledger.json goes into its folder."
)


def main() -> int:
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.porting import port
    from engine import data, models
    from engine.files import write_json
    from engine.models.abstract import outline
    from engine.runs.progress import counting
    from engine.selection.variables import name_variables

    out = _check_flags()
    if F.reverse:
        from scripts import port_reverse

        return port_reverse.main(out)
    keras_file = out is not None and out.name.endswith(".weights.h5")
    real = F.verify_graph is not None or (keras_file and not F.dry_run)
    with open_source(F.source) as source:
        # ---- the model, without memory where it is not run; then what becomes of what
        weights = port.Weights(source, averages=F.take_ema)
        size = data.parse_image_size(F.image_size) if F.image_size else None
        with contextlib.nullcontext() if real else outline():
            network = models.build_network(F.target, image_size=size, channels=F.channels)
        variables = name_variables(network)
        rules, confidence = _rules(weights, variables, out)
        decided = port.make(
            weights,
            variables,
            rules,
            grid=getattr(network, "grid", None),
            slots=F.slots,
            adam_step=F.adam_step,
            betas=(F.beta1, F.beta2),
            confidence=confidence,
        )
        _describe(decided)

        # ---- the proof, before anything is written
        parity = None
        if real:
            from engine import porting

            with counting(len(decided.plan.steps) + _slot_count(decided), "checked") as tell:
                decided.check(tell)
            porting.load(network, weights, decided.rules)
        if F.verify_graph is not None:
            parity = _verify(source, network)
        ledger = decided.ledger(target=F.target, parity=None if parity is None else parity.to_json())

        # ---- the files; weights that are not proven are not written
        equal = parity is None or parity.holds(F.bound)
        if out is not None and not F.dry_run and equal:
            if keras_file:
                _save_keras(network, out)
            else:
                with counting(len(decided.plan.steps) + 2 * _slot_count(decided), "written") as tell:
                    decided.write_npz(out, tell)
            print(f"written: {out}")
    if out is not None:
        write_json(out.parent / "ledger.json", ledger)
        print(f"written: {out.parent / 'ledger.json'}")
    if parity is not None and not equal:
        print(
            f"NOT EQUAL: the largest difference is {parity.max_abs_difference:.3g}, {F.bound:g} is allowed (--bound): "
            "no weights are written; is the model's architecture the old graph's?"
        )
        return cli.FAILED
    return cli.DONE


def _check_flags() -> pathlib.Path | None:
    """Complaints that need no file; where the output goes, its folder made."""
    from engine.errors import InputError

    for name in ("source", "target"):
        if F[name].value is None:
            raise InputError(f"{name}: --{name} is needed; --help says what it takes")
    if F.auto and F.rules is not None:
        raise InputError(f"auto, rules={F.rules}: give one of them")
    if F.yes and not F.auto:
        raise InputError("yes: it goes with --auto")
    with_graph = _given("inputs", "outputs", "feed", "bound", "examples", "seed")
    if F.verify_graph is None and with_graph:
        raise InputError(
            f"{', '.join(with_graph)}: only --verify_graph uses {'it' if len(with_graph) == 1 else 'them'}"
        )
    if F.feed and (seeded := _given("examples", "seed")):
        raise InputError(f"{', '.join(seeded)}: --feed={F.feed} gives the input")
    if F.target.startswith("file:") and (made := _given("image_size", "channels")):
        raise InputError(f"{', '.join(made)}: {F.target} says itself what its images are")
    if F.target.startswith("py:") and _given("channels") and F.image_size is None and "classes=" not in F.target:
        raise InputError(f"channels={F.channels}: give --image_size too; without it the factory is asked for its own")
    if not F.reverse and (F.base is not None or F.graph is not None or F["format"].value != "V2"):
        raise InputError("base, graph, format: they go with --reverse")
    if F.reverse and (F.slots or F.take_ema or F.verify_graph or F.auto):
        raise InputError("reverse: --slots, --take_ema, --verify_graph and --auto are for the way there")
    if F.slots is None and F.adam_step is not None:
        raise InputError(f"adam_step={F.adam_step}: it goes with --slots")
    if F.slots is None and not F.reverse and (betas := _given("beta1", "beta2")):
        raise InputError(f"{', '.join(betas)}: only --slots and --reverse use {'it' if len(betas) == 1 else 'them'}")
    for name, value in (("beta1", F.beta1), ("beta2", F.beta2)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value:g}: it lies between 0 and 1")
    if not F.bound > 0:
        raise InputError(f"bound={F.bound:g}: it must be above 0")
    if F.examples < 1 or not 0 <= F.seed < 2**31 or not 1 <= F.channels <= 1024:
        raise InputError(f"examples={F.examples}, seed={F.seed}, channels={F.channels}: out of range")
    if F.out is None:
        if F.reverse or not (F.dry_run or F.verify_graph):
            raise InputError(
                "out: --out=FILE.npz (or .weights.h5) is needed, unless --dry_run or --verify_graph is asked for"
            )
        return None
    out = pathlib.Path(F.out)
    if not F.reverse and out.suffix != ".npz" and not out.name.endswith(".weights.h5"):
        raise InputError(f"out={F.out!r}: it ends in .npz or .weights.h5")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={F.out!r}: the folder cannot be made ({error.strerror})") from None
    cli.check_out(str(out))
    return out


def _given(*names: str) -> list[str]:
    """Those of the flags that the command line names."""
    return [name for name in names if F[name].present]


def _rules(weights: Any, variables: Any, out: pathlib.Path | None) -> tuple[Any, dict[str, float]]:
    """The rules as given, as shipped, or as proposed; and of proposed ones how sure each line is."""
    from engine.porting.rules import detect, language

    if not F.auto:
        return (detect.choose(weights, variables) if F.rules is None else detect.named(F.rules)), {}
    from compat_v1.checkpoints.locate import locate
    from engine.errors import InputError
    from engine.files import write_bytes
    from engine.porting.proposals.proposal import SURE
    from engine.porting.proposals.propose import entries_of, propose

    # TensorFlow's own files have TensorFlow's order of axes: square kernels are certain then
    proposal = propose(entries_of(weights), variables, layout="tf" if locate(F.source) is not None else None)
    least = 0.0 if F.yes else SURE
    text = proposal.rules_text(at_least=least)
    print(proposal.table(), end="\n\n")
    where = "the proposal"
    if out is not None:
        path = out.with_name(re.sub(r"(\.weights)?\.(npz|h5)$", "", out.name) + ".rules")
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(f"{path}: it exists, and the proposal is another; name it with --rules, or remove it")
        write_bytes(path, text.encode())
        print(f"written: {path}")
        where = str(path)
    doubtful = [line for line in proposal.lines if line.confidence < least]
    if doubtful or proposal.missing:
        names = ", ".join([line.target for line in doubtful] + [missing.path for missing in proposal.missing])
        hint = "" if F.yes else "; --yes takes the doubtful ones too"
        print(f"left to you: {names[:300]}: complete {where} and give it with --rules{hint}\n")
    found = language.parse(text, name=pathlib.Path(where).name)
    return found, {line.target: line.confidence for line in proposal.lines if line.confidence >= least}


def _describe(decided: Any) -> None:
    plan = decided.plan
    print(f"source:  {decided.weights.path}, {len(decided.weights.source.names())} tensors")
    print(f"target:  {F.target}, {decided.variables.parameters:,} parameters in {len(decided.variables)} variables")
    print(f"weights: {len(plan.steps)} variables by {decided.rules.name}; {len(plan.skipped)} tensors skipped by rule")
    for path, reason in plan.fresh.items():
        print(f"fresh:   {path}: {reason} (the option classes=N of --target says how many outputs the model has)")
    if decided.weights.hidden:
        print(f"others:  {len(decided.weights.hidden)} tensors are averages, slots or state of an optimizer")
    if decided.slots is not None:
        slots, told = decided.slots, decided.steps
        print(f"slots:   {len(slots.ports)} of {slots.kind}, after {told.t} steps (told by {told.told_by})")
        for note in filter(None, [told.note, *(f"{p}: {why}" for p, why in list(slots.left_out.items())[:5])]):
            print(f"         {note}")


def _slot_count(decided: Any) -> int:
    return len(decided.slots.ports) if decided.slots is not None else 0


def _verify(source: Any, network: Any) -> Any:
    """Runs the old graph and the new model on one input, and prints how far they are apart."""
    from compat_v1.graphs import extract, metagraph
    from compat_v1.graphs.original import Original
    from compat_v1.porting import parity
    from engine.files import Npz

    asked = parity.parse_outputs(F.outputs) if F.outputs else None
    part = extract.extract(
        metagraph.read(F.verify_graph).definition,
        path=F.verify_graph,
        inputs=extract.parse_inputs(F.inputs) if F.inputs else None,
        outputs=[each.name for each in asked] if asked else None,
    )
    print(f"graph:   {part.summary()}")
    if F.feed:
        with Npz(F.feed) as given:
            feeds = parity.feeds_by_name(part.inputs, {name: given.read(name) for name in given.names()})
    else:
        feeds = parity.make_feeds(part.inputs, examples=F.examples, seed=F.seed)
    found = parity.compare(Original(part, source), network, feeds=feeds, outputs=asked)
    print(found.summary())
    return found


def _save_keras(network: Any, out: pathlib.Path) -> None:
    """``save_weights``, under a temporary name first."""
    import os

    from engine.errors import InputError
    from engine.selection.variables import is_keras

    if not is_keras(network):
        raise InputError(f"out={F.out!r}: {F.target} is no Keras model; --out=FILE.npz takes any")
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        network.save_weights(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
