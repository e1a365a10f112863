"""A task: data, a model with its weights, a loss and a precision, opened together and checked against each other."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from engine import data as sources
from engine import models, part_times
from engine.audit.forget_bias import check_forget_biases
from engine.data import augment as augmentation
from engine.data.image_options import DEFAULT, ImageOptions
from engine.data.part import ArraySpec, DataError, check_labels
from engine.data.tasks import view_task
from engine.data.text_encoder import choose_files
from engine.data.text_name import parse_text_name
from engine.data.tokens import TokenizerFiles
from engine.distribution.shares import WHOLE, Share
from engine.errors import InputError
from engine.files import PathLike
from engine.models.adapters.attach import attach_requested, request_adapters
from engine.models.weights import LoadedWeights, load_as_it_is, load_for_classes, load_in_order
from engine.recipes.dense_task import check_head, choose_pixel_metrics
from engine.recipes.outputs import (
    Output,
    check_task_classes,
    describe_outputs,
    fit_source,
    list_class_weights,
    plan_outputs,
)
from engine.recipes.sample_weights import find_weights, weigh_part
from engine.selection.variables import ModelVariables, name_variables
from engine.sizes import parse_bytes
from engine.training import losses
from engine.training import precision as precisions
from engine.training.figures import build_metrics
from engine.training.loss_names import CENTERS, OF_GRAPH, parse_losses
from engine.training.losses import LossFunction
from engine.training.metric import Metric
from engine.training.metric_names import check_fits, parse_metrics
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
        image_options: how image files and float images became arrays.
        weights: what was loaded; None when the weights have not been loaded yet.
        outputs: what each output of the network is trained on, and what it means.
        sample_weights: how much each training example counts in the loss, float32 [m] by position; None if all count alike.
        metrics: what evaluations compute beside the loss, by the name of the output ("" for the only one).

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
    image_options: ImageOptions = DEFAULT
    outputs: tuple[Output, ...] = ()
    sample_weights: np.ndarray | None = None
    metrics: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)

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
        parts: str = "auto",
        image_options: ImageOptions = DEFAULT,
        masks: str | None = None,
        max_tokens: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: str | None = None,
        sample_weights: PathLike | None = None,
        metrics: str = "",
        batch_size: int = 64,
        augment: str | Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> Task:
        """Opens data, builds the model for them, loads its weights, and checks that labels and outputs agree.

        Args:
            data, model: a source or its name (``engine.open_data``), and the name of a model (``engine.build_model``).
            weights: as in ``engine.load_weights``; None loads nothing yet (``with_weights`` does so later).
            adapt: adapters such as ``lora:rank=8 @attention``, which loading weights attaches; graph: for ``graph:PATH``, as in ``engine.build_model``.
            head, loss, precision, seed, rules, force_base, label_smoothing, class_weights, sample_weights, metrics: flags of ``finetune``.
            image_size: pixels: N, (height, width), or a text such as ``192x256``. By default image files are resized to the
                size that the model is made for, and other data are left as they are.
            eval_fraction, train_examples, bad_images, image_cache, parts, masks: as in ``engine.open_data``; only with a name.
            image_options: how image files and float images become arrays, ``images`` of ``engine.open_data``.
            max_tokens: the tokens of an example of ``text:PATH``; None means 128, or all that the model takes if that is less.
            batch_size, augment: the defaults of ``train_batches``.
            say: is called with a line on what was left out or decided, and on slow progress; None tells nobody.

        Raises:
            InputError: a name or value is not valid, files cannot be read, or data, model and loss do not fit together.
        """
        numbers, say = precisions.parse(precision), say or (lambda line: None)
        asked = parse_losses(loss, label_smoothing=label_smoothing, class_weights=class_weights)
        given: dict[str, Any] = {"eval_fraction": eval_fraction, "train_examples": train_examples}
        given |= {"image_size": image_size, "masks": masks, "max_tokens": max_tokens}
        opening: dict[str, Any] = {"bad_images": bad_images, "image_cache": image_cache, "parts": parts, "say": say}
        source = fit_source(_open_source(data, model, given, **opening, images=image_options), asked)
        weighed = find_weights(sample_weights, source, loss, say)
        check_head(source, model, head, loss)
        planned = plan_outputs(source, asked, say=say)
        built = _build(source, model, planned, numbers, head=head, seed=seed, graph=graph)
        request_adapters(built, adapt, seed=seed)
        kinds = {o.name: (o.kind, built.tasks.get(o.name, built.outputs)) for o in planned}
        beside: dict[str, Any] = {"metrics": choose_metrics(metrics, kinds, dense=source.train.dense)}
        own = beside | {"class_weights": list_class_weights(planned), "label_smoothing": label_smoothing}
        task = cls(
            source=source,
            model=built,
            variables=name_variables(built.network),
            loss=loss,
            loss_fn=make_loss(built, loss, **own),
            outputs=planned,
            sample_weights=weighed,
            **beside,
            numbers=numbers,
            seed=seed,
            batch_size=batch_size,
            augment=augmentation.parse(augment) if isinstance(augment, str) else tuple(augment),
            image_options=image_options,
        )
        task._check_outputs()
        return task if weights is None else task.with_weights(weights, rules=rules, force_base=force_base)

    @part_times.part("weights")
    def with_weights(self, weights: PathLike, *, rules: PathLike | None = None, force_base: bool = False) -> Task:
        """Loads weights into the network; the task returned gives images as these weights expect them.

        A head is matched by the names of its classes; ``force_base`` is as in ``engine.load_weights``. Raises PortError if the weights cannot be read, or do not fit the
        model or the data.
        """
        given: dict[str, Any] = {"rules": rules, "image_shape": self.source.image_shape, "force_base": force_base}
        if self.several and (rules is None or str(rules) == "frostline"):
            check_task_classes(weights, self.outputs)
        if self.several or self.kind == "mse":
            loaded = load_as_it_is(self.model, weights, **given)
        elif self.kind == CENTERS:
            loaded = load_in_order(self.model, weights, self.class_names or (), **given)
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
    def several(self) -> bool:
        """Whether the network has outputs by name, of which each has a loss."""
        return self.outputs[0].name != ""

    @property
    def kind(self) -> str:
        """What the outputs mean: "softmax", "sigmoid" or "mse"; if there are several, the first."""
        return self.outputs[0].kind

    @property
    def has_accuracy(self) -> bool:
        """Whether evaluations may have an accuracy; a loss of the user's own, or of a graph, tells only when it is computed."""
        if len(self.outputs) != 1 or self.outputs[0].name:
            return False
        only = self.outputs[0]
        return only.kind not in ("mse", CENTERS) or only.loss.kind not in losses.LOSSES

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes that the only output stands for; None if the data name none, or the loss has none."""
        return None if self.several else self.outputs[0].class_names

    @property
    def normalise(self) -> sources.Normalise:
        """What is done to images before the network gets them."""
        own = self.model.normalise
        return own if self.images is None else models.images_as(self.images, self.source.image_shape)

    @property
    def train_part(self) -> sources.Part:
        """The training part of the data, whose examples also have the weights that were given for them."""
        return weigh_part(self.source.train, self.sample_weights)

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
            self.train_part,
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
        """Raises DataError unless the labels are classes, or columns, that the model has, and batches can be made."""
        for output in self.outputs:
            view = view_task(self.source, output.name) if output.name else self.source
            outputs = self.model.tasks[output.name] if output.name else self.model.outputs
            if output.kind == "softmax":
                for name in ("train", "eval", "test"):
                    part = getattr(view, name)
                    if part is not None:
                        check_labels(view.name, f"{name}_labels{_of(output)}", part.labels, outputs)
            elif outputs != output.count:
                raise DataError(
                    f"model={self.model.name!r}: it has {outputs} outputs{_of(output)}; loss {output.loss.kind} on "
                    f"{view.name} needs {output.count}"
                )
        self.train_batches()  # its complaints come before the weights are read


def _of(output: Output) -> str:
    return f" of {output.name}" if output.name else ""


def other_inputs(source: sources.Source) -> dict[str, ArraySpec] | None:
    """The inputs of an example by name, where there are several, or one that is not an image."""
    specs = source.train.input_specs
    return specs if len(specs) > 1 or not next(iter(specs.values())).is_image else None


def _build(
    source: sources.Source, model: str, planned: Sequence[Output], numbers: Precision, **given: Any
) -> models.Model:
    """The model for these data, with what their labels need as outputs; ``given`` are further arguments of build_model."""
    return models.build_model(
        model,
        image_shape=source.image_shape,
        dtype=numbers.variables,
        compute=numbers.compute,
        inputs=other_inputs(source),
        **describe_outputs(source, planned),
        **given,
    )


def _open_source(
    data: str | sources.Source, model: str, asked: Mapping[str, Any], *, image_cache: str | int, **given: Any
) -> sources.Source:
    """The source of a name, or the one that is given; ``asked`` are what only a name can have, each or None."""
    if not isinstance(data, str):
        if any(value is not None for value in asked.values()):
            raise InputError(f"{', '.join(asked)}: they need the name of a source; this one is open already")
        return data
    named = ("eval_fraction", "train_examples", "masks")
    return sources.open_data(
        data,
        **{name: asked[name] for name in named},
        image_size=sources.check_image_size(asked["image_size"]),
        image_cache=parse_bytes(image_cache, name="image_cache") if isinstance(image_cache, str) else image_cache,
        file_size=lambda: models.default_image_size(model),
        tokenizer=find_tokenizer(model, data, asked["max_tokens"]),
        **given,
    )


def find_tokenizer(model: str, data: str, max_tokens: int | None) -> TokenizerFiles | None:
    """The tokenizer for these data: the one that they name, or the model's own; None if there is none, or they are not texts."""
    if not data.startswith("text:"):
        if max_tokens is not None:
            raise InputError(f"max_tokens={max_tokens}: it is about texts, and data={data} is not text:PATH")
        return None
    found = choose_files(parse_text_name(data), models.find_tokenizer(model))
    return None if found is None else dataclasses.replace(found, max_tokens=max_tokens)


def choose_metrics(
    metrics: str, outputs: Mapping[str, tuple[str, int]], *, dense: bool = False
) -> dict[str, tuple[Metric, ...]]:
    """The metrics that a text names, by output; MetricError if one does not suit any.

    ``outputs`` are the kind ("softmax", "sigmoid" or "mse") and the width of each output, by its name ("" for the only one).
    With ``dense`` labels, a class for each pixel, they are those of pixels, all of them where the text names none.
    """
    only = outputs.get("", ("", 0))[0]
    metrics = choose_pixel_metrics(metrics) if dense else metrics or ("ap50" if only == CENTERS else "")
    kinds = {name: kind for name, (kind, _) in outputs.items()}
    counts = {name: count for name, (_, count) in outputs.items()}
    return build_metrics(check_fits(parse_metrics(metrics), kinds), kinds=kinds, outputs=counts)


def make_loss(
    model: models.Model,
    loss: str,
    *,
    label_smoothing: float = 0.0,
    class_weights: Mapping[str, Sequence[float]] | None = None,
    metrics: Mapping[str, Sequence[Metric]] = MappingProxyType({}),
) -> LossFunction:
    """The loss function of a model, by its name; InputError if it is ``graph:NAME`` and the model is not a graph.

    ``class_weights`` are the values that were found for the option of this name, and ``metrics`` what evaluations compute
    beside the loss, by output.
    """
    if not loss.startswith(OF_GRAPH):
        given: dict[str, Any] = {"label_smoothing": label_smoothing, "class_weights": class_weights}
        return losses.supervised_loss(model.network, loss, **given, metrics=metrics, inputs=model.inputs or None)
    if any(metrics.values()):
        raise InputError(f"metrics: --loss={loss} is computed by the graph, and says no more")
    if model.own_loss is None:
        raise InputError(
            f"loss={loss}: model={model.name} is not a graph that has a loss; expected {', '.join(losses.LOSSES)}"
        )
    return model.own_loss(loss.removeprefix(OF_GRAPH))
