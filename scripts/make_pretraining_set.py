"""Make the training set of the shipped weights of vit:mini: five classes of Fashion-MNIST.

The four files of the Debian package dataset-fashion-mnist are read. The other five classes are left out, and so is every
image that is in the embedded set (compared byte by byte). The result is an .npz file for --data=npz:FILE.
"""

from __future__ import annotations

from absl import flags

from . import cli

F = flags.FLAGS

flags.DEFINE_string(
    "source", "/usr/share/datasets/fashion-mnist", "The folder with the four idx files of Fashion-MNIST."
)
flags.DEFINE_list(
    "classes",
    ["0", "1", "4", "5", "8"],
    "Classes to keep, from 0 to 9, comma-separated; they are renumbered from 0 in this order.",
)
flags.DEFINE_string("out", None, "The .npz file to write.", required=True)


def main() -> int:
    from engine.errors import InputError

    if bad := [word for word in F.classes if word not in "0123456789" or len(word) != 1]:
        raise InputError(f"classes={','.join(F.classes)}: {bad[0]!r} is not a class; expected numbers from 0 to 9")
    cli.check_out(F.out)
    cli.import_tensorflow(keras=False)
    import numpy as np

    from engine import data
    from engine.data.idx import read_idx_folder
    from engine.files import write_npz

    embedded = data.open_data("fashion_mnist_mini")
    assert embedded.test is not None
    parts = (embedded.train, embedded.eval, embedded.test)
    known = {image.tobytes() for part in parts for image in part.read(np.arange(len(part)))["image"]}
    classes = [int(word) for word in F.classes]
    arrays = {"class_names": np.array([embedded.classes[number] for number in classes])}
    for prefix, (images, labels) in read_idx_folder(F.source).items():
        kept = [i for i in range(len(images)) if labels[i] in classes and images[i].tobytes() not in known]
        arrays[f"{prefix}_images"] = images[kept]
        arrays[f"{prefix}_labels"] = np.array([classes.index(label) for label in labels[kept]], np.int64)
        print(f"{prefix}: {len(kept)} of {len(images)} images kept")
    write_npz(F.out, arrays.items())
    print(f"written: {F.out}")
    return cli.DONE


def run() -> None:
    cli.run(main, about=__doc__ or "", flags_in=__name__)


if __name__ == "__main__":
    run()
