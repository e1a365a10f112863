"""Evaluate what a run trained: its own figures, and what they hide.

--run names the run, and its evaluation part is evaluated unless --data or --part say otherwise. Printed are loss, accuracy,
precision, recall and F1 of each class and on average, the area under the ROC curve of two classes, and the calibration error.
--out also gets evaluation.json, confusion.csv, confusion.png and mistakes.png, the most confident mistakes. Where there is a
class for each pixel, the figures are mean IoU and Dice and those of each class, of a detector the average precision of each
class; predictions.png then shows some examples.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from engine.errors import InputError

from . import cli, model_flags

if TYPE_CHECKING:
    from engine.recipes.evaluation_data import Examples
    from engine.recipes.reopen import OpenedRun
    from engine.recipes.reports import Report
    from engine.recipes.wise_ft import Interpolation

HELP = {
    "data": "Other data than those of --run, as for finetune; or where the run's data are now.",
    "part": "Which examples: eval, test, train, or all of data that are not divided (default: eval; of other data than the run's, eval, else test, else all).",
    "bad_images": "Unreadable image files: stop names them and ends, skip leaves them out (default: as the run).",
    "corrupt": "Also evaluate the images seen through corruptions, separated by commas, such as blur:2,noise:1 (blur, noise, contrast, jpeg and brightness; strengths 1 to 3), or all of them.",
    "interpolate": "Of --run: evaluate weights between those that it began with (0) and those that it ended with (1), at the ratio that does best on the evaluation part: auto tries 0, 0.1 ... 1; or ratios, separated by commas. With --out, interpolated.npz is their delta.",
    "metrics": "Figures beside these, over all examples at once, as for finetune: top5, auc, f1, py:module:name and so on (default: those of --run).",
    "out": "Folder for evaluation.json, confusion.csv, confusion.png, mistakes.png or predictions.png, and interpolated.npz.",
}
FILES = ("evaluation.json", "interpolated.npz", "confusion.csv", "confusion.png", "mistakes.png", "predictions.png")
model_flags.define(__name__)
cli.define_flags(__name__, HELP, {}, choices={"part": ("eval", "test", "train", "all"), "bad_images": ("stop", "skip")})


def main() -> int:
    from engine.data import corruptions
    from engine.data.source import check_source
    from engine.porting.deltas.interpolation import parse_ratios
    from engine.runs.existing import check_no_run
    from engine.training.metric_names import parse_metrics
    from engine.writing import check_folder

    given = flags.FLAGS
    model_flags.check()
    if given.data is not None:
        check_source(given.data)
    elif given.run is None:
        raise InputError("data: expected the name of a source, such as folder:DIR; only a --run has data of its own")
    corrupt = () if given.corrupt is None else corruptions.parse(given.corrupt)
    parse_metrics(given.metrics or "")
    if given.interpolate is not None:
        parse_ratios(given.interpolate)
        if given.run is None:
            raise InputError(f"interpolate={given.interpolate}: only a --run says from which weights it began")
    if given.out is not None:
        check_folder(given.out)
        check_no_run(given.out)
    tf = cli.import_tensorflow(keras=cli.needs_keras(model_flags.model_name()))
    from engine.recipes.evaluate import evaluate
    from engine.recipes.evaluation_data import open_examples
    from engine.runs.progress import show_progress

    opened = model_flags.open_model(print)
    if opened.config.deterministic:
        tf.config.experimental.enable_op_determinism()
    between = None
    if given.interpolate is not None:
        opened, between = _interpolate(opened)
    examples = open_examples(opened, data=given.data, part=given.part, bad_images=given.bad_images, say=print)
    with show_progress(len(examples.part) * (1 + len(corrupt)), "evaluation") as show:
        report = evaluate(
            opened, examples, batch_size=given.batch_size, corrupt=corrupt, named=given.metrics, progress=show
        )
    if between is not None:
        report.figures["interpolation"] = between.to_json()
    _print_report(report)
    if given.out is not None:
        cli.hold_folder(given.out, ours=FILES.__contains__)
        if between is not None:
            from engine.recipes.wise_ft import write_interpolated

            write_interpolated(pathlib.Path(given.out) / "interpolated.npz", opened, between)
        _write_report(pathlib.Path(given.out), report, examples, print)
    return cli.DONE


def _interpolate(opened: OpenedRun) -> tuple[OpenedRun, Interpolation]:
    """The run with weights between those that it began and ended with, chosen on an evaluation part; prints the choice."""
    from engine.porting.deltas.interpolation import parse_ratios
    from engine.recipes.evaluation_data import open_examples
    from engine.recipes.wise_ft import choose_ratio
    from engine.runs.progress import show_progress
    from engine.text import table

    given = flags.FLAGS
    ratios = parse_ratios(given.interpolate)
    choosing = open_examples(opened, data=given.data, part="eval", bad_images=given.bad_images, say=print)
    with show_progress(len(choosing.part) * len(ratios), "interpolation") as show:
        opened, found = choose_ratio(opened, choosing, ratios=ratios, batch_size=given.batch_size, progress=show)
    rows = [(f"{each['ratio']:g}", _number(each["loss"]), _number(each["accuracy"])) for each in found.each]
    print("\n" + table([("ratio", "loss", "accuracy"), *rows], right={0, 1, 2}))
    alone = "" if given.part == "test" else "; its figures there are flattering, so judge it by --part=test"
    print(f"\nratio:   {found.ratio:g}, the best on the {found.examples:,} examples of the evaluation part{alone}")
    return opened, found


def _print_report(report: Report) -> None:
    figures = report.figures
    print()
    own = figures["run_figures"]
    same = "" if own is None else " (the run's own, to the bit)" if own["same"] else f" (the run: {own['loss']:.9g})"
    print(f"loss:              {figures['loss']:.6f}{same}")
    rows = [
        ("accuracy", "accuracy"),
        ("ap50", "mean AP50"),
        ("miou", "mean IoU"),
        ("dice", "mean Dice"),
        ("top5_accuracy", "top 5 accuracy"),
        ("auc", "area under ROC"),
    ]
    for key, name in (*rows, ("calibration_error", "calibration error")):
        if figures.get(key) is not None:
            bins = f" (expected, {figures['calibration_bins']} bins)" if key == "calibration_error" else ""
            print(f"{name + ':':<18} {figures[key]:.4f}{bins}")
    for name, value in figures.get("metrics", {}).items():
        if name != "accuracy" and name not in figures:  # AP50, as above
            print(f"{name + ':':<18} {'in evaluation.json' if isinstance(value, list) else _number(value)}")
    if "mistakes" in figures:
        print(f"mistakes:          {figures['mistakes']:,} of {figures['data']['examples']:,}")
    if report.tasks:
        _print_tasks(report)
        return
    for text in filter(None, (_table(figures), _worst(report), _shift(figures))):
        print(f"\n{text}")


def _print_tasks(report: Report) -> None:
    """The figures of each output, on the examples that have a label of it."""
    for name, each in report.tasks.items():
        figures = each.figures
        accuracy = "" if figures["accuracy"] is None else f", accuracy {figures['accuracy']:.4f}"
        print(f"\n{name}: {figures['data']['examples']:,} examples, loss {figures['loss']:.6f}{accuracy}")
        for text in filter(None, (_table(figures), _worst(each))):
            print(f"\n{text}")


def _table(figures: dict[str, Any]) -> str:
    """Precision, recall and F1 of each class and on average; or the errors of each column."""
    from engine.text import table

    if "pixel_classes" in figures:
        cells = [
            (each["name"], f"{each['pixels']:,}", f"{each['predicted']:,}", _number(each["iou"]), _number(each["dice"]))
            for each in figures["pixel_classes"]
        ]
        return table([("", "pixels", "predicted", "IoU", "Dice"), *cells], right={1, 2, 3, 4})
    if "ap50" in figures:
        keys = ("objects", "detections", "found")
        boxes = [
            (each["name"], *(f"{each[key]:,}" for key in keys), _number(each["ap50"])) for each in figures["classes"]
        ]
        return table([("", *keys, "AP50"), *boxes], right={1, 2, 3, 4})
    if "columns" in figures:
        names = ("mean_absolute_error", "root_mean_squared_error", "r_squared")
        rows = [(each["name"], *(_number(each[name]) for name in names)) for each in figures["columns"]]
        return table([("", "mean absolute error", "root mean squared error", "R squared"), *rows], right={1, 2, 3})
    rated = figures.get("classes") or figures["labels"]
    keys = ("precision", "recall", "f1")
    body = [(each["name"], f"{each['examples']:,}", *(_number(each[key]) for key in keys)) for each in rated]
    total = ("macro average", "", *(_number(figures["macro"][key]) for key in keys))
    return table([("", "examples", "precision", "recall", "F1"), *body, total], right={1, 2, 3, 4})


def _shift(figures: dict[str, Any]) -> str:
    """Loss, accuracy and calibration error as it is, under each corruption, and on average over these."""
    from engine.text import table

    if "corruptions" not in figures:
        return ""
    found = figures["corruptions"]
    keys = [key for key, value in found["mean"].items() if value is not None]
    named = [(f"{each['kind']}:{each['strength']}", each) for each in found["each"]]
    rows = [("as it is", figures), *named, ("mean over corruptions", found["mean"])]
    cells = [(name, *(_number(each[key]) for key in keys)) for name, each in rows]
    return table(
        [("seen through", *(key.replace("_", " ") for key in keys)), *cells], right=set(range(1, len(keys) + 1))
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _worst(report: Report) -> str:
    """The pairs of classes that are confused most often."""
    import numpy as np

    if report.confusions is None:
        return ""
    off = report.confusions - np.diag(np.diagonal(report.confusions))
    order = np.argsort(-off, axis=None, kind="stable")[:5]
    pairs = [divmod(int(cell), len(report.names)) for cell in order if off.flat[cell]]
    lines = [f"  {off[row, column]:,} {report.names[row]} taken for {report.names[column]}" for row, column in pairs]
    return "\n".join(["confused most often:", *lines]) if lines else ""


def _write_report(out: pathlib.Path, report: Report, examples: Examples, say: Callable[[str], None]) -> None:
    """Writes the files of an evaluation; those of an earlier one that do not apply any more are removed."""
    import csv
    import io

    from engine.files import write_bytes, write_json
    from engine.runs.evaluation_pictures import draw_confusions, draw_mistakes
    from engine.runs.mask_pictures import draw_masks

    written = ["evaluation.json", *(["interpolated.npz"] if "interpolation" in report.figures else [])]
    write_json(out / "evaluation.json", report.figures)
    if report.confusions is not None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["true class", *report.names])
        rows.writerows([name, *row] for name, row in zip(report.names, report.confusions.tolist(), strict=True))
        write_bytes(out / "confusion.csv", text.getvalue().encode())
        written.append("confusion.csv")
    try:
        if report.confusions is not None:
            draw_confusions(out / "confusion.png", report.confusions, report.names)
            written.append("confusion.png")
        if len(report.mistakes) and len(examples.part.image_shape) == 3:
            images = examples.part.read(report.mistakes)[examples.part.input_name]
            draw_mistakes(out / "mistakes.png", images, _titles(report, examples))
            written.append("mistakes.png")
        if report.drawn is not None:
            draw_masks(out / "predictions.png", *report.drawn, report.names)
            written.append("predictions.png")
        if report.boxes is not None:
            from engine.recipes.detections import draw_found

            draw_found(out / "predictions.png", examples.part, report.boxes, names=report.names)
            written.append("predictions.png")
    except ImportError:
        say("confusion.png and the other pictures were not drawn: the package matplotlib is missing (extra `report`)")
    for name in FILES:
        if name not in written:
            (out / name).unlink(missing_ok=True)
    say(f"\nwritten: {out} ({', '.join(written)})")


def _titles(report: Report, examples: Examples) -> list[tuple[str, str]]:
    """What is written over each mistake: what it was taken for and how surely, and what it is."""
    found = report.figures["most_confident_mistakes"]
    return [(f"{each['predicted']} ({each['probability']:.3f})", f"is {each['class']}") for each in found]


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
