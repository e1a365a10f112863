"""The picture of a model: where each part lies, and what is drawn."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from engine import TrainStep, models, select
from engine.frostline.cuts import cut_step
from engine.frostline.line import FrostLine, Refused
from engine.runs.picture import Panel, draw, layout, share, short_number
from engine.training import losses, optimizers

RNG = np.random.default_rng(0)
ORANGE, ICE = (0xF0, 0xB5, 0x4A), (0x00, 0x72, 0xB2)


class Branches(tf.Module):
    """Images [B, 6] -> stem -> block (two kernels, of which one may train) -> head; ``scale`` is read everywhere."""

    def __init__(self) -> None:
        super().__init__()

        def weight(*shape: int) -> Any:
            return tf.Variable(RNG.standard_normal(shape).astype(np.float32))

        self.scale = weight(1)
        self.stem = {"kernel": weight(6, 6)}
        self.block = {"left": weight(6, 5), "right": weight(6, 5)}
        self.unused = {"kernel": weight(3, 3)}
        self.head = {"kernel": weight(5, 3)}

    def __call__(self, images: Any, *, training: bool = False, seeds: Any = None) -> Any:
        x = tf.nn.relu(tf.matmul(images * self.scale, self.stem["kernel"]))
        both = tf.nn.relu(tf.matmul(x, self.block["left"])) + tf.nn.relu(tf.matmul(x, self.block["right"]))
        return tf.matmul(both * self.scale, self.head["kernel"])


def panel_of(model: Any, train: str, shape: tuple[int, ...] = (6,)) -> Panel:
    given = {"image": RNG.standard_normal((4, *shape)).astype(np.float32), "label": RNG.integers(0, 3, 4)}
    selection = select(model, train)
    step = TrainStep(losses.supervised_loss(model), optimizers.SGD())
    return Panel(f"train {train}", selection, cut_step(step, selection, given))


def network(spec: str) -> Any:
    return models.build_model(spec, image_shape=(28, 28, 1), outputs=3).network


@pytest.fixture(scope="module")
def vit() -> Any:
    return network("vit:mini,depth=2")


def shown(panel: Panel) -> list[list[tuple[str, str]]]:
    return [[(box.label, box.state) for box in side] for side in layout(panel)]


def pixels(path: pathlib.Path) -> np.ndarray:
    from matplotlib import image

    return np.round(image.imread(path)[..., :3] * 255).astype(int)


def has(path: pathlib.Path, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels(path) - colour).max(-1) <= 1).sum() > 200)


def test_what_the_prefix_alone_reads_lies_below_the_line(vit: Any) -> None:
    panel = panel_of(vit, "@head", (28, 28, 1))
    assert isinstance(panel.line, FrostLine)
    assert set(panel.line.frozen_below) == {entry.path for entry in panel.selection.frozen}
    assert shown(panel) == [[("patch … norm", "below")], [("head", "trained")]]
    (below,), (above,) = layout(panel)
    assert (below.count, below.parameters, above.parameters) == (6, panel.selection.frozen_parameters, 291)


def test_a_frozen_part_above_what_trains_lies_above_the_line(vit: Any) -> None:
    below, above = shown(panel_of(vit, "@head @blocks[-1:]", (28, 28, 1)))
    assert below == [("patch … blocks/0", "below")]
    assert above == [("blocks/1", "trained"), ("norm", "above"), ("head", "trained")]


def test_a_part_of_which_some_trains_says_how_much(vit: Any) -> None:
    below, above = layout(panel_of(vit, "@head @bias", (28, 28, 1)))
    assert below == []
    assert [box.state for box in above] == ["partly", "above", "partly", "trained"]
    assert above[0].words == "96 of 1,632 train"


def test_statistics_are_said_to_move_or_to_stay() -> None:
    model = network("cnn:mini")
    words = {train: layout(panel_of(model, train, (28, 28, 1)))[1][0].words for train in ("@all", "@all !@stats")}
    assert words == {"@all": "trains, statistics move", "@all !@stats": "trains, statistics stay"}


def test_a_part_on_both_sides_is_drawn_on_both() -> None:
    panel = panel_of(Branches(), "head/.* block/right")
    assert isinstance(panel.line, FrostLine)
    assert "scale" not in panel.line.frozen_below, "what trains reads it too"
    assert "unused/kernel" not in panel.line.frozen_below
    below, above = layout(panel)
    assert below[0].label.startswith("stem")
    states = {box.label: box.state for box in above}
    assert states["head"] == "trained"
    assert states["scale"] == "above"


def test_without_a_line_all_is_above_it() -> None:
    model = Branches()
    refused = panel_of(model, "@all !head/.* !unused/.*")
    assert isinstance(refused.line, Refused)
    assert [box.words for box in layout(refused)[1]][-1] == "frozen, but every step computes it"
    unasked = layout(Panel("x", select(model, "head/.*")))
    assert unasked[0] == []
    assert [box.words for box in unasked[1]] == ["frozen", "trains"]


def test_the_line_is_drawn_where_there_is_one(tmp_path: pathlib.Path) -> None:
    model = Branches()
    draw(tmp_path / "line.png", [panel_of(model, "head/.*")])
    draw(tmp_path / "none.png", [panel_of(model, "@all !unused/.*")])
    assert has(tmp_path / "line.png", ORANGE)
    assert has(tmp_path / "none.png", ORANGE)
    assert has(tmp_path / "line.png", ICE)
    assert not has(tmp_path / "none.png", ICE)
    assert (tmp_path / "line.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_phases_lie_side_by_side_and_very_many_are_cut_short(tmp_path: pathlib.Path) -> None:
    panel = Panel("phase", select(Branches(), "head/.*"), note="4 steps")
    sizes = {}
    for count in (1, 3, 4, 500):
        draw(tmp_path / "x.png", [panel] * count)
        sizes[count] = pixels(tmp_path / "x.png").shape[:2]
    assert [width // sizes[1][1] for _, width in sizes.values()] == [1, 3, 3, 3]
    assert sizes[3][0] == sizes[1][0] < sizes[4][0] < sizes[500][0] < 5 * sizes[1][0]


def test_names_of_users_are_drawn_as_they_are(tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder) -> None:
    variables = {
        "a$x_{$/kernel": tf.Variable([1.0]),
        "<b>&\\frac/kernel": tf.Variable([1.0]),
        "n" * 300: tf.Variable([1.0]),
    }
    draw(
        tmp_path / "x.png",
        [Panel("$\\oops{$ " * 30, select(variables, "n+"), Refused(("$a_" * 300,)), note="$_{" * 50)],
    )
    assert pixels(tmp_path / "x.png").shape[0] > 100
    assert not recwarn.list


def test_a_picture_has_a_panel(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw(tmp_path / "x.png", [])
    assert not (tmp_path / "x.png").exists()


def test_numbers_are_for_people() -> None:
    assert [short_number(n) for n in (0, 970, 999_600, 47_616, 25_557_032)] == ["0", "970", "1 M", "47.6 K", "25.6 M"]
    assert [share(x) for x in (0.0, 0.4, 0.9996, 1.0)] == ["0.0%", "40.0%", "over 99.9%", "100.0%"]
