"""Port a TensorFlow 1 checkpoint, or any weights file, into a model, and account for every tensor in a ledger.

Rules say which tensor becomes which variable (--rules), or they are proposed from names and shapes (--auto). --out is
an .npz file for finetune's --weights, or a Keras .weights.h5 file; ledger.json is written next to it. --verify_graph
runs the old graph and the new model on the same input and compares their outputs. --reverse goes the other way: it
writes weights into a checkpoint that the old graph's own Saver restores. --out=X.safetensors with --names leaves
TensorFlow: the tensors get the names and layouts of timm, of Hugging Face's transformers or of a rule file.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from typing import Any

from absl import flags

from . import cli, port_out

F = flags.FLAGS

_DEFAULTS = {
    "channels": 3, "auto": False, "yes": False, "take_ema": False, "adam_step": int, "beta1": 0.9, "beta2": 0.999,
    "examples": int, "time_limit": 600.0, "tags": list, "seed": 0, "bound": 1e-5, "dry_run": False, "reverse": False, "force_base": False, "format": "V2",
}  # fmt: skip
cli.define_flags(
    __name__,
    {
        "source": "The checkpoint: its prefix, one of its files, its folder, or a SavedModel; or an .npz, safetensors or Keras file, or a frozen graph (.pb, .pbtxt), whose weights are its constants. With --reverse, the weights to write back; what a run did not train (trained.npz lacks it) comes from the run's checkpoints or from --base.",
        "target": "The model, as for finetune's --model: vit:SIZE/PATCH, cnn:mini, keras:NAME, file:X.keras, or py:module:factory (any Keras model or tf.Module, also with several outputs). The option classes=N sets the number of outputs of the head (1000 unless given; a py: factory has its own).",
        "image_size": "Height and width of the model's images in pixels: N or HEIGHTxWIDTH (unless given, the model's default).",
        "channels": "Number of channels of the model's images.",
        "rules": "Which tensor becomes which variable: a rule file, or the name of a shipped one.",
        "auto": "Propose rules from names and shapes. They are written next to --out as a .rules file with a confidence on every line.",
        "yes": "With --auto: also accept lines with a confidence below 0.8.",
        "take_ema": "Use the exponential moving average of each variable that has one.",
        "slots": "Also port the optimizer's slots: Adam, Momentum, RMSProp, Adagrad, Adadelta, Ftrl, or auto for the only kind in the file (unless given, none).",
        "adam_step": "The number of steps the optimizer has made, if it cannot be determined from the file.",
        "beta1": "beta1 of the Adam that computed the slots; its powers determine the number of steps.",
        "beta2": "beta2 of the Adam that computed the slots.",
        "verify_graph": "The old graph (.meta, a SavedModel, a frozen .pb or a graph.pbtxt): run it and the new model on the same input.",
        "tags": "Comma-separated tags of the graph, where a SavedModel holds several (unless given, the one tagged serve, else the one without tags, which --tags= also names).",
        "inputs": "Inputs of the old graph, comma-separated: the tensors to feed, in the order of the model's inputs, with a shape where the graph does not state it (None for the examples), and NAME=VALUE for those with a fixed value, which may be a list, or FILE.npz with an array NAME; for example images[None,32,32,3],lengths=[300],is_training=False (unless given, the only placeholder).",
        "outputs": "Outputs of the old graph, comma-separated, in the order of the model's outputs: TENSOR, TENSOR=KEY with a key of the model's outputs, or TENSOR | reshape(-1, 2) for another layout (unless given, the only candidate).",
        "feed": "An .npz file with a value for each of --inputs, by name (unless given, seeded random values).",
        "examples": "Batch size of the random input (unless given, the length of the lists in --inputs, or 4).",
        "seed": "Seed of the random input.",
        "time_limit": "Seconds that the graph of --verify_graph may run.",
        "bound": "Largest absolute difference that --verify_graph accepts, for outputs of unit scale.",
        "dry_run": "Plan and print everything, but write no weights: only ledger.json and proposed rules, if --out is given.",
        "reverse": "Write --source (weights of --target) into a TensorFlow 1 checkpoint, by the same rules in reverse.",
        "base": "With --reverse: the old checkpoint, or a frozen graph. Tensors that did not change, and those that no rule names, are copied from it bit for bit.",
        "force_base": "With --reverse: take --base also if it is not what trained.npz belongs to.",
        "graph": "With --reverse: the old graph (.meta); every key that its Saver restores must be in the checkpoint.",
        "format": "With --reverse: the format of the checkpoint.",
        "names": port_out.NAMES_HELP
        + " Without --target, the variables are the tensors of --source under their own names.",
        "out": "FILE.npz, FILE.weights.h5 or, with --names, FILE.safetensors; with --reverse, the prefix of a checkpoint, or, where --base is a frozen graph, another FILE.pb. ledger.json is written into the same folder.",
    },
    _DEFAULTS,
    choices={"format": ["V1", "V2"]},
)


def main() -> int:
    out = _check_flags()
    cli.import_tensorflow(keras=cli.needs_keras(F.target or f"file:{F.source}"))
    if F.reverse:
        from . import port_reverse

        assert out is not None
        return port_reverse.main(out)
    if _is_direct():
        assert out is not None
        return port_out.main(out)
    return _port(out)


def _port(out: pathlib.Path | None) -> int:
    from compat_v1.checkpoints.reader import open_source
    from compat_v1.graphs import metagraph
    from compat_v1.porting import port
    from engine import data, models, porting
    from engine.files import write_json
    from engine.models.abstract import abstract_variables
    from engine.models.keras.weights_file import save_weights_file
    from engine.porting.plan import take_names
    from engine.porting.rules.detect import get_rules
    from engine.runs.progress import show_each
    from engine.selection.variables import name_variables

    keras_file = out is not None and out.name.endswith(".weights.h5")
    leaves = out is not None and F.names is not None
    real = F.verify_graph is not None or ((keras_file or leaves) and not F.dry_run)
    with open_source(F.source) as source:
        # ---- the plan; a model that is not run is built without memory for its weights
        size = data.parse_image_size(F.image_size) if F.image_size else None
        with contextlib.nullcontext() if real else abstract_variables():
            network = models.build_network(F.target, image_size=size, channels=F.channels)
        variables = name_variables(network)
        given = None if F.rules is None else get_rules(F.rules)
        weights = port.Weights(take_names(source, variables, given), averages=F.take_ema)
        graph = metagraph.read_metagraph(F.verify_graph, tags=F.tags) if F.verify_graph is not None else None
        rules, confidence = _rules(weights, variables, graph, out)
        planned = port.plan_port(
            weights,
            variables,
            rules,
            grid=getattr(network, "grid", None),
            slots=F.slots,
            adam_step=F.adam_step,
            betas=(F.beta1, F.beta2),
            confidence=confidence,
            graph=graph,
        )
        _describe(planned)
        absent = planned.plan.fresh
        named = port_out.plan(variables, network, source=F.source, absent=absent, image_size=size) if leaves else None

        # ---- the comparison, before anything is written
        parity = None
        slots = len(planned.slots.ports) if planned.slots is not None else 0
        if real:
            with show_each(len(planned.plan.assignments) + slots, "checked") as tell:
                planned.check(tell)
            porting.load(network, weights, planned.rules)
        if graph is not None:
            parity = _compare(network, graph)
        ledger = planned.ledger(target=F.target, parity=None if parity is None else parity.to_json())

        # ---- the files; weights that differ from the original are not written
        equal = parity is None or parity.holds(F.bound)
        if out is not None and not F.dry_run and equal:
            if named is not None:
                port_out.write(named, out, ledger=ledger, image_size=size)
                return _conclude(parity, weights.path)
            if keras_file:
                save_weights_file(network, out)
            else:
                with show_each(len(planned.plan.assignments) + 2 * slots, "written") as tell:
                    planned.write_npz(out, tell)
            print(f"written: {out}")
    if out is not None:
        write_json(out.parent / "ledger.json", ledger)
        print(f"written: {out.parent / 'ledger.json'}")
    return _conclude(parity, weights.path)


def _compare(network: Any, graph: Any) -> Any:
    """Runs the model and the old graph on the same input."""
    from compat_v1.porting.graph_parity import compare_with_graph

    print("".join(f"graph:   {line}\n" for line in filter(None, [graph.note, graph.unknown_note()])), end="")
    parity = compare_with_graph(
        F.source,
        network,
        graph,
        inputs=F.inputs,
        outputs=F.outputs,
        feed=F.feed,
        examples=F.examples,
        time_limit=F.time_limit,
        seed=F.seed,
    )
    print(parity.summary())
    return parity


def _conclude(parity: Any, weights: pathlib.Path) -> int:
    """Prints what is known about the ported model in the last line, and returns the exit code."""
    if parity is None:
        from engine.porting.readers.graph_file import find_graph_file

        graph = find_graph_file(weights) or "GRAPH"
        print(
            f"NOT VERIFIED: nothing shows that the model computes what the original did; --verify_graph={graph} would"
        )
    elif not parity.holds(F.bound):
        print(
            f"NOT EQUAL: the largest difference is {parity.max_abs_difference:.3g}, above --bound={F.bound:g}. No weights "
            "were written. Check that the model has the architecture of the old graph."
        )
        return cli.FAILED
    return cli.DONE


def _check_flags() -> pathlib.Path | None:
    """Checks everything that needs no file, creates the folder of --out and returns its path."""
    from engine import writing
    from engine.errors import InputError, check_range

    leaves = port_out.check_names(F.out or "", F.names)
    for name in ("source",) if leaves and not F.reverse and _is_direct() else ("source", "target"):
        if F[name].value is None:
            raise InputError(f"{name}=None: --{name} is required; --help describes it")
    if F.auto and F.rules is not None:
        raise InputError(f"auto, rules={F.rules}: expected only one of them")
    if F.yes and not F.auto:
        raise InputError("yes is only used with --auto")
    with_graph = _given(
        "inputs", "outputs", "feed", "bound", "examples", "seed", "time_limit", *([] if F.graph else ["tags"])
    )
    if F.verify_graph is None and with_graph:
        raise InputError(f"{', '.join(with_graph)}: only used with --verify_graph")
    if F.feed and (seeded := _given("examples", "seed")):
        raise InputError(f"{', '.join(seeded)}: not used with --feed={F.feed}, which holds the input")
    if (F.target or "").startswith("file:") and (sized := _given("image_size", "channels")):
        raise InputError(f"{', '.join(sized)}: {F.target} already defines its images")
    if (
        (F.target or "").startswith("py:")
        and _given("channels")
        and F.image_size is None
        and "classes=" not in F.target
    ):
        raise InputError(f"channels={F.channels} also needs --image_size; otherwise the factory chooses both")
    if not F.reverse and (F.base is not None or F.graph is not None or F["format"].value != "V2"):
        raise InputError("base, graph and format are only used with --reverse")
    if F.force_base and (F.base is None or not F.reverse):
        raise InputError("force_base is only used with --reverse and --base")
    if F.reverse and (F.slots or F.take_ema or F.verify_graph or F.auto):
        raise InputError("reverse cannot be combined with --slots, --take_ema, --verify_graph or --auto")
    _check_leaving(leaves)
    if F.slots is None and F.adam_step is not None:
        raise InputError(f"adam_step={F.adam_step} is only used with --slots")
    if F.slots is None and not F.reverse and (betas := _given("beta1", "beta2")):
        raise InputError(f"{', '.join(betas)}: only used with --slots or --reverse")
    for name, value in (("beta1", F.beta1), ("beta2", F.beta2)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value:g}: expected a number between 0 and 1, both excluded")
    if not F.bound > 0:
        raise InputError(f"bound={F.bound:g}: expected a number above 0")
    check_range("examples", F.examples, 1)
    check_range("time_limit", F.time_limit, above=0)
    check_range("seed", F.seed, 0, 2**31 - 1)
    check_range("channels", F.channels, 1, 1024)
    if F.reverse and (F.rules is None or F.out is None):
        raise InputError("reverse needs --rules (the rules that ported the checkpoint) and --out=PREFIX")
    if F.out is None:
        if not (F.dry_run or F.verify_graph):
            raise InputError(
                "out=None: expected FILE.npz, FILE.weights.h5 or FILE.safetensors, unless --dry_run or --verify_graph is given"
            )
        return None
    out = pathlib.Path(F.out)
    if leaves:
        port_out.hold(out, F.source)
        return out
    if not F.reverse and out.suffix != ".npz" and not out.name.endswith(".weights.h5"):
        hint = "; --names says how the tensors of a safetensors file are called" if out.suffix == ".safetensors" else ""
        raise InputError(f"out={F.out!r}: expected a name that ends in .npz or .weights.h5{hint}")
    cli.hold_folder(str(out.parent), ours=(out.name, "ledger.json", _rules_name(out)).__contains__)
    writing.check_file(F.out)
    writing.check_target(out.parent / "ledger.json")
    return out


def _is_direct() -> bool:
    """Whether --names alone says what the tensors of --source become, without rules that port them into a model."""
    if F.names is None or F.rules is not None or F.auto:
        return False
    return F.target is None or (F.source or "").endswith((".keras", ".weights.h5"))


def _check_leaving(leaves: bool) -> None:
    """Raises InputError for flags that do not go with a safetensors file under other names."""
    from engine.errors import InputError

    if not leaves:
        return
    given = [
        name
        for name in ("reverse", "slots", *(["verify_graph", "rules", "auto"] if F.target is None else []))
        if F[name].value
    ]
    if given:
        why = (
            "it needs --target"
            if F.target is None and given[0] not in ("reverse", "slots")
            else "the file has weights alone"
        )
        raise InputError(f"{given[0]} cannot be combined with --names={F.names}: {why}")
    if F.source.endswith(".weights.h5") and F.target is None:
        raise InputError(f"target=None: {F.source} belongs to a Keras model; --target says which")
    if F.source.endswith(".keras") and F.target is not None:
        raise InputError(f"target={F.target}: {F.source} is a whole model already; leave --target out")


def _rules_name(out: pathlib.Path) -> str:
    """The name of the file of proposed rules that belongs to an output."""
    return re.sub(r"(\.weights)?\.(npz|h5|safetensors)$", "", out.name) + ".rules"


def _given(*names: str) -> list[str]:
    """Returns those of the flags that are on the command line."""
    return [name for name in names if F[name].present]


def _rules(weights: Any, variables: Any, graph: Any, out: pathlib.Path | None) -> tuple[Any, dict[str, float]]:
    """Returns the given, detected or proposed rules, and for proposed ones the confidence in each line."""
    from engine.porting.rules import detect, language

    if not F.auto:
        return (detect.choose_rules(weights, variables) if F.rules is None else detect.get_rules(F.rules)), {}
    from engine.audit.forget_bias import find_forget_biases
    from engine.errors import InputError
    from engine.files import write_bytes
    from engine.porting.proposals.proposal import SURE
    from engine.porting.proposals.propose import list_entries, propose
    from engine.porting.readers.frozen_file import FrozenFile
    from engine.porting.readers.locate import locate

    # TensorFlow's own files have TensorFlow's order of axes, so that square kernels are unambiguous
    ours = locate(F.source) is not None or isinstance(weights.source, FrozenFile)
    hidden = weights.hidden
    called = weights.source.readable_names() if isinstance(weights.source, FrozenFile) else {}
    meant = {text: name for name, text in called.items()}
    recurrent = any("recurrent" in entry.path for entry in variables)
    proposal = propose(
        [entry._replace(name=called.get(entry.name, entry.name)) for entry in list_entries(weights)],
        variables,
        layout="tf" if ours else None,
        hidden=hidden,
        forget_biases=find_forget_biases(weights.path, graph) if recurrent else None,
    )
    proposal = proposal.renamed(lambda name: weights.real(meant.get(name, name)))
    note = "Made with --take_ema: the averages are named here, so this holds without that flag." if F.take_ema else ""
    texts = {least: proposal.rules_text(at_least=least, note=note) for least in (SURE, 0.0)}
    least = 0.0 if F.yes else SURE
    text = texts[least]
    print(proposal.table(), end="\n\n")
    where = "the proposal"
    if out is not None:
        from engine.reading import read_file

        path = out.with_name(_rules_name(out))
        if path.exists() and read_file(path, 1 << 20) not in {known.encode() for known in texts.values()}:
            raise InputError(f"{path} exists and differs from the proposal; give it with --rules, or remove it")
        write_bytes(path, text.encode())
        print(f"written: {path}")
        where = str(path)
    if left := proposal.left_to_user(at_least=least):
        doubtful = [line for line in proposal.lines if line.confidence < least]
        hint = "; --yes accepts the doubtful lines too" if doubtful else ""
        print("\n  ".join([f"left to you ({len(left)}):", *left]))
        print(f"Complete {where} and give it with --rules{hint}\n")
    found = language.parse_rules(text, name=pathlib.Path(where).name)
    return found, {line.target: line.confidence for line in proposal.lines if line.confidence >= least}


def _describe(planned: Any) -> None:
    """Prints the source, the target and what the rules do."""
    plan = planned.plan
    print(f"source:  {planned.weights.path}, {len(planned.weights.source.names())} tensors")
    print(f"target:  {F.target}, {planned.variables.parameters:,} parameters in {len(planned.variables)} variables")
    print(
        f"weights: {len(plan.assignments)} variables by {planned.rules.name}; {len(plan.skipped)} tensors skipped by rule"
    )
    for note in planned.rules.notes:
        print(f"note:    {note}")
    for path, reason in plan.fresh.items():
        print(f"fresh:   {path}: {reason} (the option classes=N of --target sets the number of outputs)")
    if planned.weights.hidden:
        print(f"others:  {len(planned.weights.hidden)} tensors are averages, slots or state of an optimizer")
    if planned.fact:
        print(f"facts:   {planned.fact}")
    if planned.slots is not None:
        slots, steps = planned.slots, planned.steps
        print(f"slots:   {len(slots.ports)} of {slots.kind}, after {steps.t} steps (known from {steps.origin})")
        for note in filter(None, [steps.note, *(f"{p}: {why}" for p, why in list(slots.left_out.items())[:5])]):
            print(f"         {note}")


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
