"""A task: data, a model with its weights, a loss and a precision, opened together and checked against each other."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import data as sources
from engine import models, part_times
from engine.audit.forget_bias import check_forget_biases
from engine.data import augment as augmentation
from engine.data.part import DataError, check_labels
from engine.distribution.shares import WHOLE, Share
from engine.errors import InputError
from engine.files import PathLike
from engine.models.adapters.attach import attach_requested, request_adapters
from engine.models.weights import LoadedWeights, load_as_it_is, load_for_classes
from engine.selection.variables import ModelVariables, name_variables
from engine.sizes import parse_bytes
from engine.training import losses
from engine.training import precision as precisions
from engine.training.loss_names import OF_GRAPH, output_kind
from engine.training.losses import LossFunction
from engine.training.precision import LossScale, Precision


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a job trains on what: made by ``Task.open``.

    Attributes:
        source, model: the data, and the model with its network and what one must know to train it.
        variables: every variable of the network, named.
        loss, loss_fn: the name of the loss, and the loss function of the network, for a ``TrainStep``.
        numbers: the dtypes of variables and computation.
        seed: decides the initial weights, and the order and augmentation of train batches.
        images: the preprocessing that loaded weights expect (``engine.models.IMAGES``); None uses the model's own.
        weights: what was loaded; None when the weights have not been loaded yet.

    Example:
        >>> from engine import Task
        >>> task = Task.open(data="fashion_mnist_mini", model="vit:mini", train_examples=64, batch_size=16)
        >>> len(task.variables), task.model.outputs, task.per_epoch
        (104, 10, 4)
        >>> task.train_batches().at(0)["image"].shape
        TensorShape([16, 28, 28, 1])
    """

    source: sources.Source
    model: models.Model
    variables: ModelVariables
    loss: str
    loss_fn: LossFunction
    numbers: Precision
    seed: int
    batch_size: int
    augment: tuple[str, ...] = ()
    images: str | None = None
    weights: LoadedWeights | None = None

    @classmethod
    def open(
        cls,
        *,
        data: str | sources.Source,
        model: str,
        weights: PathLike | None = "auto",
        head: str | None = None,
        loss: str = "softmax",
        precision: str = "float32",
        graph: Mapping[str, str] | None = None,
        image_size: str | int | tuple[int, int] | None = None,
        seed: int = 0,
        rules: PathLike | None = None,
        adapt: str | None = None,
        force_base: bool = False,
        eval_fraction: float | None = None,
        train_examples: int | None = None,
        bad_images: str = "stop",
        image_cache: str | int = sources.IMAGE_CACHE,
        label_smoothing: float = 0.0,
        batch_size: int = 64,
        augment: str | Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> Task:
        """Opens data, builds the model for them, loads its weights, and checks that labels and outputs agree.

        Args:
            data, model: a source or its name (``engine.open_data``), and the name of a model (``engine.build_model``).
            weights: as in ``engine.load_weights``; None loads nothing yet (``with_weights`` does so later).
            adapt: adapters such as ``lora:rank=8 @attention``, which loading weights attaches; graph: for ``graph:PATH``, as in ``engine.build_model``.
            head, loss, precision, seed, rules, force_base, label_smoothing: as the flags of ``finetune``.
            image_size: pixels: N, (height, width), or a text such as ``192x256``. By default image files are resized to the
                size that the model is made for, and other data are left as they are.
            eval_fraction, train_examples, bad_images, image_cache: as in ``engine.open_data``; only with a name.
            batch_size, augment: the defaults of ``train_batches``.
            say: is called with a line about files that are left out and slow progress; None tells nobody.

        Raises:
            InputError: a name or value is not valid, files cannot be read, or data, model and loss do not fit together.
        """
        numbers = precisions.parse(precision)
        source = data
        if isinstance(source, str):
            cache = parse_bytes(image_cache, name="image_cache") if isinstance(image_cache, str) else image_cache
            source = sources.open_data(
                source,
                eval_fraction=eval_fraction,
                train_examples=train_examples,
                image_size=_image_size(image_size, source, model),
                bad_images=bad_images,
                image_cache=cache,
                say=say or (lambda line: None),
            )
        elif (eval_fraction, train_examples, image_size) != (None, None, None):
            raise InputError(
                "eval_fraction, train_examples, image_size: they need the name of a source; this one is open already"
            )
        kind = output_kind(loss, classes=bool(source.classes))
        if kind == "softmax":
            source = source.with_classes()
        built = _build(source, model, kind, numbers, head=head, seed=seed, graph=graph)
        request_adapters(built, adapt, seed=seed)
        task = cls(
            source=source,
            model=built,
            variables=name_variables(built.network),
            loss=loss,
            loss_fn=make_loss(built, loss, label_smoothing=label_smoothing),
            numbers=numbers,
            seed=seed,
            batch_size=batch_size,
            augment=augmentation.parse(augment) if isinstance(augment, str) else tuple(augment),
        )
        task._check_outputs()
        task.train_batches()  # its complaints come before the weights are read
        return task if weights is None else task.with_weights(weights, rules=rules, force_base=force_base)

    @part_times.part("weights")
    def with_weights(self, weights: PathLike, *, rules: PathLike | None = None, force_base: bool = False) -> Task:
        """Loads weights into the network; the task returned gives images as these weights expect them.

        A head is matched by the names of its classes; ``force_base`` is as in ``engine.load_weights``. Raises PortError if the weights cannot be read, or do not fit the
        model or the data.
        """
        given: dict[str, Any] = {"rules": rules, "image_shape": self.source.image_shape, "force_base": force_base}
        if self.kind == "mse":
            loaded = load_as_it_is(self.model, weights, **given)
        else:
            loaded = load_for_classes(self.model, weights, self.class_names or (), **given)
        self.variables.refresh()
        if loaded.ledger is not None and (fact := check_forget_biases(loaded.ledger.loaded, pathlib.Path(loaded.base))):
            loaded = dataclasses.replace(loaded, text=f"{loaded.text}; {fact}")
        return dataclasses.replace(self._renamed(), weights=loaded, images=loaded.images)

    def with_adapters(self) -> Task:
        """The task with the adapters that it was opened with, beside whatever weights it has now."""
        attach_requested(self.model)
        return self._renamed()

    def _renamed(self) -> Task:
        """The task with the variables that the network has now."""
        if self.model.adapters is None:
            return self
        return dataclasses.replace(self, variables=name_variables(self.model.network))

    def with_images(self, images: str | None) -> Task:
        """The task with another preprocessing, such as the one that a checkpoint or a job names."""
        return dataclasses.replace(self, images=images)

    @property
    def kind(self) -> str:
        """What the outputs mean: "softmax", "sigmoid" or "mse"."""
        return output_kind(self.loss, classes=bool(self.source.classes))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes that the outputs stand for; None if the data name none, or the loss has none."""
        return None if self.kind == "mse" else self.source.class_names

    @property
    def normalise(self) -> sources.Normalise:
        """What is done to images before the network gets them."""
        own = self.model.normalise
        return own if self.images is None else models.images_as(self.images, self.source.image_shape)

    @property
    def per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return -(-len(self.source.train) // self.batch_size)

    def loss_scale(self) -> LossScale | None:
        """A new loss scale where the precision needs one (mixed_float16)."""
        return LossScale() if self.numbers.scaled else None

    def train_batches(
        self, *, batch_size: int | None = None, augment: Sequence[str] | None = None, share: Share = WHOLE
    ) -> sources.TrainBatches:
        """The steps of the training part, or a share of them; the other arguments replace the task's.

        Errors are those of ``TrainBatches``.
        """
        return sources.TrainBatches(
            self.source.train,
            batch_size=self.batch_size if batch_size is None else batch_size,
            seed=self.seed,
            augment=self.augment if augment is None else augment,
            normalise=self.normalise,
            share=share,
        )

    def eval_batches(self, *, batch_size: int | None = None, part: sources.Part | None = None) -> sources.EvalBatches:
        """The evaluation part, or another one, in batches of at least 64 examples unless given."""
        size = max(self.batch_size, 64) if batch_size is None else batch_size
        return sources.EvalBatches(
            self.source.eval if part is None else part, batch_size=size, normalise=self.normalise
        )

    def _check_outputs(self) -> None:
        """Raises DataError unless the labels are classes, or columns, that the model has."""
        source, outputs = self.source, self.model.outputs
        if self.kind == "softmax":
            for name in ("train", "eval", "test"):
                part = getattr(source, name)
                if part is not None:
                    check_labels(source.name, f"{name}_labels", part.labels, outputs)
        elif outputs != (needed := source.outputs(self.kind)):
            raise DataError(
                f"model={self.model.name!r}: it has {outputs} outputs; loss {self.loss} on {source.name} needs {needed}"
            )


def _build(source: sources.Source, model: str, kind: str, numbers: Precision, **given: Any) -> models.Model:
    """The model for these data, with what their labels need as outputs; ``given`` are further arguments of build_model."""
    specs = source.train.input_specs
    others = len(specs) > 1 or not next(iter(specs.values())).is_image
    return models.build_model(
        model,
        image_shape=source.image_shape,
        outputs=source.outputs(kind),
        logits=kind != "mse",
        dtype=numbers.variables,
        compute=numbers.compute,
        inputs=specs if others else None,
        **given,
    )


def _image_size(size: str | int | tuple[int, int] | None, data: str, model: str) -> tuple[int, int] | None:
    """What images are resized to; None leaves them as they are."""
    if size is not None:
        return sources.check_image_size(size)
    if data.startswith("folder:"):
        return models.default_image_size(model)
    return None


def make_loss(model: models.Model, loss: str, *, label_smoothing: float = 0.0) -> LossFunction:
    """The loss function of a model, by its name; InputError if it is ``graph:NAME`` and the model is not a graph."""
    if not loss.startswith(OF_GRAPH):
        return losses.supervised_loss(model.network, loss, label_smoothing=label_smoothing)
    if model.own_loss is None:
        raise InputError(
            f"loss={loss}: model={model.name} is not a graph that has a loss; expected {', '.join(losses.LOSSES)}"
        )
    return model.own_loss(loss.removeprefix(OF_GRAPH))
