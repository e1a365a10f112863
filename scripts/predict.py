"""Predict images, texts or rows of numbers with what a run trained: class names and probabilities, or features.

--run names the run; preprocessing, image size, tokenizer, columns, classes and precision are the run's own. Labels are not needed.
--images is a folder with its sub-folders, a file, or a pattern such as 'photos/*.jpg' (in quotes); --texts a file of texts, or
of rows with a column of text, or a folder of .txt files; --table a file of numbers, whose columns are found by the names that the
run recorded. The answers are printed, or written to --out. Images that cannot be read are named and counted, the others are
predicted, and the exit code is then 2. A run with a class for each pixel writes label images in the size of each image, and
drawings, into the folder FILE_masks beside --out=FILE.csv.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from absl import flags

from engine.errors import InputError, check_range

from . import cli, model_flags, predict_input

if TYPE_CHECKING:
    from engine.recipes.predictor import FileBatch, Predictor
    from engine.recipes.reopen import OpenedRun

    from .predict_input import Given

HELP = {
    "images": "Folder of images (with its sub-folders), one image file, or a pattern such as 'photos/*.jpg'; in natural order, img2 before img10.",
    "texts": "Of a run on texts: FILE.txt (one text a line), FILE.tsv, .csv or .jsonl (the columns of text are those that the run read, by their names; labels are ignored), or a folder of .txt files. Options follow it: FILE.csv,quotes=no (header, quotes, delimiter).",
    "text_columns": "Of --texts: the column of the text, and after a comma that of the second text, if the run has no names of them or the file has others; names, or numbers from 1.",
    "table": "Of a run on vectors: FILE.csv or .tsv with a header (features are found by the names that the run recorded, other columns are not used), or FILE.npz (x, by the number of columns); standardised as the run's data. Options follow it: FILE.csv,missing=NA (missing, delimiter, encoding, features).",
    "top": "Classes per example, the most probable first (default: 1; of several labels for an example, all of them). Of a detector, boxes per image, the best first (default: 100). Not for a class for each pixel.",
    "out": "File to write instead of printing: .csv or .jsonl (JSON Lines). A run with a class for each pixel needs it, and writes label images into the folder FILE_masks beside it, with 255 where its cropping left pixels out.",
    "format": "Of what is printed: csv or jsonl (of --out, its suffix decides).",
    "features": "FILE.npz that gets the features of the examples, and their files or lines, instead of predictions.",
    "features_below": "Of --features: the filter of the variables above the features, such as '@blocks[-2:] @head' (default: @head, so that they are the input of the head).",
}
model_flags.define(__name__)
cli.define_flags(__name__, HELP, {"top": int}, choices={"format": ("csv", "jsonl")})


def main() -> int:
    files = _check_flags()
    say = _say_on_stdout if flags.FLAGS.out or flags.FLAGS.features else _say_on_stderr
    from engine.recipes.joined import open_predictors, view_whole
    from engine.recipes.one_output import check_given

    flag = predict_input.check_flags()
    listed = predict_input.find_files(flag, say)
    for name in files:
        predict_input.check_target(name, listed)
    cli.import_tensorflow(keras=cli.needs_keras(model_flags.model_name()))
    above = (flags.FLAGS.features_below or "@head") if flags.FLAGS.features else None
    opened = model_flags.open_model(say, features_below=above)
    check_given(opened, flag)
    if opened.config.deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    predictors = open_predictors(opened, batch_size=flags.FLAGS.batch_size)
    given = predict_input.open_given(flag, listed, opened, next(iter(predictors.values())).encoder, say)
    if above is not None:
        from engine.recipes.features import build_features

        whole = view_whole(opened, predictors)
        bad = _write_features(whole, build_features(whole, opened.variables, above), given, say)
    elif opened.tasks:
        bad = _write_predictions(_open_tasks(opened, predictors, given.key), given, say)
    else:
        bad = _write_predictions(_open_single(opened, predictors[""], given, listed, say), given, say)
    if bad:
        print(
            f"predict: {bad:,} of {len(listed):,} files could not be read; the others were predicted", file=sys.stderr
        )
    return cli.BAD_INPUT if bad else cli.DONE


def _say_on_stdout(line: str) -> None:
    print(line, flush=True)


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # what is printed is for other programs


def _check_flags() -> list[str]:
    """Checks what can be checked without TensorFlow; returns the names of the files that will be written."""
    from engine.runs.existing import check_not_of_run

    given = flags.FLAGS
    model_flags.check()
    predict_input.check_flags()
    check_range("top", given.top, 1)
    if given.features is None and given.features_below is not None:
        raise InputError(f"features_below={given.features_below}: it needs --features=FILE.npz")
    if given.features is not None and (wrong := [n for n in ("out", "top", "format") if given[n].value is not None]):
        raise InputError(
            f"{wrong[0]}={given[wrong[0]].value}: --features writes features and no predictions; leave it out"
        )
    if given.out is not None and pathlib.Path(given.out).suffix not in (".csv", ".jsonl"):
        raise InputError(f"out={given.out}: expected a name that ends in .csv or .jsonl")
    if given.out is not None and given.format not in (None, pathlib.Path(given.out).suffix[1:]):
        raise InputError(f"format={given.format}: the suffix of --out={given.out} says another one")
    if given.features is not None and pathlib.Path(given.features).suffix != ".npz":
        raise InputError(f"features={given.features}: expected a name that ends in .npz")
    found = [name for name in (given.out, given.features) if name is not None]
    for name in found:
        check_not_of_run(name, name="out" if name == given.out else "features")
        cli.check_out(name)
    return found


def _check_masks(opened: OpenedRun) -> None:
    """Raises InputError unless label images have a place, and only they and their shares are asked for."""
    from engine.export.folder import check_new

    about = f"{'model' if opened.path is None else 'run'}={opened.path or opened.config.model}: it gives a class to each pixel"
    if flags.FLAGS.out is None:
        raise InputError(
            f"out: {about}, and label images are files; --out=FILE.csv writes a table, and the folder FILE_masks "
            "beside it"
        )
    if flags.FLAGS.top is not None:
        raise InputError(f"top={flags.FLAGS.top}: {about}, and the share of every class is told; leave it out")
    check_new(_mask_folder())


def _mask_folder() -> pathlib.Path:
    """The folder of label images: beside the table, with its name."""
    out = pathlib.Path(flags.FLAGS.out)
    return out.with_name(f"{out.stem}_masks")


def _computed(
    predictor: Predictor,
    function: Any,
    given: Given,
    say: Callable[[str], None],
    *,
    places: bool = False,
) -> Iterator[FileBatch]:
    """The batches of all examples, with progress; names the files that cannot be read."""
    from engine.runs.progress import show_progress

    size = predictor.fit_batch_size(function)
    if size < predictor.batch_size:
        say(f"batches: {size} {given.called}, because memory is short for {predictor.batch_size}")
    to_file = flags.FLAGS.out or flags.FLAGS.features
    shown: contextlib.AbstractContextManager[Callable[..., None]] = contextlib.nullcontext(lambda done: None)
    if to_file:
        shown = show_progress(len(given), given.called)
    done = 0
    with shown as show:
        for batch in given.compute(predictor, function, size, places=places):
            done += len(batch.files) + len(batch.bad)
            show(done)
            yield batch
    given.end(say)


def _check_any(bad: int, given: Given) -> None:
    if bad == len(given):
        raise InputError(
            f"images={flags.FLAGS.images}: none of the {bad:,} files can be read as an image; nothing was written"
        )


class _Told(NamedTuple):
    """What is told of examples: by which predictor and function, the heading, the lines of a batch, and whether these are places.

    ``around`` is entered before anything is computed, and left when all of it is; ``also`` is said of what else was written.
    """

    predictor: Predictor
    function: Any
    heading: str
    format: Callable[[FileBatch], str]
    places: bool = False
    around: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    also: str = ""


def _kind() -> str:
    """The format of lines."""
    out = flags.FLAGS.out
    return pathlib.Path(out).suffix[1:] if out else flags.FLAGS.format or "csv"


def _open_single(
    opened: OpenedRun,
    predictor: Predictor,
    given: Given,
    listed: Sequence[pathlib.Path],
    say: Callable[[str], None],
) -> _Told:
    """What is told of the only output of a model; ``listed`` are the files of images."""
    from engine.training.loss_names import CENTERS

    from .predict_output import BoxLines, Lines

    top = flags.FLAGS.top
    if predictor.loss == CENTERS:
        predictor = predictor if top is None else replace(predictor, most_boxes=top)
        boxes = BoxLines(predictor, _kind(), top=top)

        def tell(batch: FileBatch) -> str:
            return boxes.format(batch.files, predictor.probabilities(batch.outputs[0]))

        return _Told(predictor, predictor.function, boxes.heading(), tell, places=True)
    if predictor.dense:
        _check_masks(opened)
        return _open_masks(predictor, listed, say)
    lines = Lines(predictor, _kind(), top=top, outputs=int(predictor.function.outputs[0].shape[-1]), key=given.key)
    return _Told(
        predictor,
        predictor.function,
        lines.heading(),
        lambda batch: lines.format(batch.files, predictor.probabilities(batch.outputs[0])),
    )


def _open_masks(predictor: Predictor, listed: Sequence[pathlib.Path], say: Callable[[str], None]) -> _Told:
    """Label images, which appear in their folder when all are written, and what is told of them."""
    from engine.export.folder import new_folder

    from .predict_output import MaskLines

    place = _mask_folder()
    lines = MaskLines(predictor, _kind(), told=place.name, files=listed, say=say)

    @contextlib.contextmanager
    def writing() -> Iterator[None]:
        with new_folder(place) as folder:
            lines.folder = folder
            yield
            lines.write_legend()

    return _Told(
        predictor,
        predictor.function,
        lines.heading(),
        lambda batch: lines.format(batch.files, batch.outputs[0]),
        places=True,
        around=writing(),
        also=f", and {place} with their label images",
    )


def _open_tasks(opened: OpenedRun, predictors: Mapping[str, Predictor], key: str) -> _Told:
    """What is told of several outputs, which are computed together."""
    from engine.recipes.joined import join_outputs, view_whole

    from .predict_output import TaskLines

    function = join_outputs(opened, predictors)
    for name, output in zip(predictors, function.outputs, strict=True):
        if output.shape.rank != 2:
            raise InputError(
                f"run={opened.path}: its output {name} has a value for each of several places, which a line for each example cannot "
                "hold; open_run(RUN).for_task(NAME).predictor() gives it"
            )
    counts = [int(output.shape[-1]) for output in function.outputs]
    lines = TaskLines(predictors, _kind(), top=flags.FLAGS.top, outputs=counts, key=key)
    return _Told(
        view_whole(opened, predictors),
        function,
        lines.heading(),
        lambda batch: lines.format(batch.files, batch.outputs),
    )


def _write_predictions(told: _Told, given: Given, say: Callable[[str], None]) -> int:
    """Writes or prints the predictions of all examples; returns the number of those that cannot be read."""
    from engine.files import write_atomically

    out, bad = flags.FLAGS.out, 0

    def write_all(write: Callable[[str], object]) -> None:
        nonlocal bad
        heading = told.heading
        with told.around:
            for batch in _computed(told.predictor, told.function, given, say, places=told.places):
                bad += len(batch.bad)
                if batch.files:
                    write(heading + told.format(batch))
                    heading = ""
            _check_any(bad, given)

    def write_file(file: IO[bytes]) -> None:
        write_all(lambda text: file.write(text.encode()))

    if out is None:
        write_all(sys.stdout.write)
        return bad
    write_atomically(out, write_file)
    say(f"written: {out} ({len(given) - bad:,} {given.called}){told.also}")
    return bad


def _write_features(predictor: Predictor, function: Any, given: Given, say: Callable[[str], None]) -> int:
    """Writes the features of all examples; returns the number of those that cannot be read."""
    from .predict_output import FeatureFile

    shapes = [(tuple(tensor.shape[1:]), tensor.dtype.as_numpy_dtype) for tensor in function.outputs]
    out, bad = flags.FLAGS.features, 0
    with contextlib.closing(FeatureFile(pathlib.Path(out).parent, shapes, key=given.key)) as kept:
        for batch in _computed(predictor, function, given, say):
            bad += len(batch.bad)
            if batch.files:
                kept.add(batch.files, batch.outputs)
        _check_any(bad, given)
        kept.write(out)
    said = " and ".join(f"{list(shape)}" for shape, _ in shapes)
    say(f"written: {out} ({len(given) - bad:,} {given.called}, features {said} each)")
    return bad


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
