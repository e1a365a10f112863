"""What a run came to."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.data.image_options import make_form
from engine.distribution.distribution import ALONE, Distribution
from engine.errors import InputError
from engine.recipes.encoders import find_task_encoder
from engine.recipes.predictor import Predictor
from engine.recipes.task import Task
from engine.selection.selection import Selection
from engine.text import join_words
from engine.training.loop import Stage
from engine.training.phases import Evaluation

DONE, FAILED, STOPPED = 0, 1, 3  # exit codes of a run


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What a run came to.

    Attributes:
        out, run: the run directory and the content of its run.json; a dry run makes neither.
        code: 0 if the run is done, 1 if it failed, 3 if it was stopped and can be resumed.
        reason: why it ended: "done", "early_stop", "dry_run", or a sentence.
        task: the data and the model, whose variables are as the last step left them.
        stages: the phases, with their selections.
        evaluations: all evaluations, those before a resume included.
        distribution: the part that this process had in the run. All workers return the same; the chief has written it.
    """

    out: pathlib.Path
    run: Mapping[str, Any]
    code: int
    reason: str
    task: Task
    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...]
    distribution: Distribution = ALONE

    @property
    def network(self) -> Any:
        """The network that was trained."""
        return self.task.model.network

    @property
    def selection(self) -> Selection:
        """The selection of the last phase."""
        return self.stages[-1].selection

    def predictor(self, *, batch_size: int = 64) -> Predictor:
        """The trained model as a function of images, texts or vectors, in batches of at most ``batch_size``.

        Images are those of the data, before they are normalised. Texts are a list, ``predictor(["a text", "another"])``, or one of
        pairs; vectors are [n, D] in the order of the run's columns, as the file has them (``Predictor.__call__``).

        It uses the variables as they are now. ``engine.recipes.reopen.open_run(result.out).predictor()`` gives the same
        later, from the run directory.

        Example:
            >>> import tempfile
            >>> from engine import FinetuneConfig, finetune
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     config = FinetuneConfig(train="@head", steps=2, train_examples=64, cache="off", out=f"{folder}/run")
            ...     result = finetune(config)
            >>> predictor = result.predictor()
            >>> images = result.task.source.eval.read(range(3))["image"]
            >>> predictor(images).shape, predictor.class_names[:2]
            ((3, 10), ('T-shirt', 'Trouser'))
        """
        task = self.task
        if task.several:
            raise InputError(
                f"the network has several outputs ({join_words(output.name for output in task.outputs)}); "
                "open_run(result.out).for_task(NAME).predictor() predicts one"
            )
        encoder = find_task_encoder(task)
        return Predictor(
            network=self.network,
            normalise=task.normalise,
            image_shape=task.source.image_shape,
            loss=task.kind,
            class_names=task.class_names or task.source.columns or None,
            batch_size=batch_size,
            form=make_form(task.source.image_shape, task.source.train.image_dtype, task.image_options),
            inputs={} if encoder is None else encoder.specs,
            encoder=encoder,
        )
