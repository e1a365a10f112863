"""FinetuneConfig: one field for each flag, and everything that can be checked is checked before TensorFlow is imported."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from absl import flags

from engine.errors import InputError
from engine.recipes.config import CHOICES, FREE, FinetuneConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]

# fields -> the whole message
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no number": ({"steps": "10"}, "steps='10': expected int or None"),
    "a bool is no number": ({"batch_size": True}, "batch_size=True: expected int"),
    "a number is no text": ({"train": 3}, "train=3: expected str or None"),
    "a text is no sequence": ({"phase": "steps=3"}, "phase='steps=3': expected a sequence of texts"),
    "no None": ({"learning_rate": None}, "learning_rate=None: expected float"),
    "steps": ({"steps": 0}, "steps=0: expected a number of at least 1"),
    "early_stop": ({"early_stop": 0}, "early_stop=0: expected a number of at least 1"),
    "eval_every": ({"eval_every": -1}, "eval_every=-1: expected a number of at least 1"),
    "log_every": ({"log_every": 0}, "log_every=0: expected a number of at least 1"),
    "checkpoint_every": ({"checkpoint_every": 0}, "checkpoint_every=0: expected a number of at least 1"),
    "keep": ({"keep": 0}, "keep=0: expected a number of at least 1"),
    "batch_size": ({"batch_size": 0}, "batch_size=0: expected a number of at least 1"),
    "train_examples": ({"train_examples": 0}, "train_examples=0: expected a number of at least 1"),
    "cache_views": ({"cache_views": 0}, "cache_views=0: expected a number of at least 1"),
    "epochs": ({"epochs": 0.0}, "epochs=0.0: expected a number above 0"),
    "learning_rate": ({"learning_rate": -1.0}, "learning_rate=-1.0: expected a number above 0"),
    "rate nan": ({"learning_rate": float("nan")}, "learning_rate=nan: expected a number above 0"),
    "rate infinite": ({"learning_rate": float("inf")}, "learning_rate=inf: expected a finite number above 0"),
    "eval_fraction": ({"eval_fraction": 1.0}, "eval_fraction=1.0: expected a number above 0 and below 1"),
    "ema": ({"ema": 0.0}, "ema=0.0: expected a number above 0 and below 1"),
    "seed": ({"seed": -1}, "seed=-1: expected a number from 0 to 2147483647"),
    "large seed": ({"seed": 2**31}, "seed=2147483648: expected a number from 0 to 2147483647"),
    "micro_batches": (
        {"micro_batches": 65},
        "micro_batches=65: a step of --batch_size=64 examples can be computed in 1 to 64 parts",
    ),
    "slots": ({"slots": "old"}, "slots='old': expected continue or fresh"),
    "plan": ({"plan": "dept"}, "plan='dept': expected micro_batches or depth; nearest: depth"),
    "remat": ({"remat": "block"}, "remat='block': expected none, elementwise or blocks; nearest: blocks"),
    "rules": (
        {"rules": "vit_hf"},
        "rules=vit_hf: rules say how a file is read, but --weights=auto does not name a file",
    ),
    "depth without budget": ({"plan": "depth"}, "plan=depth: --memory_budget must say what has to fit"),
    "depth with train": (
        {"plan": "depth", "memory_budget": "1GB", "train": "@all"},
        "plan=depth: the plan decides what trains; leave out --train and --phase",
    ),
    "two plans": (
        {"memory_budget": "1GB", "micro_batches": 2},
        "micro_batches=2, memory_budget=1GB: the budget decides the micro-batches; give only one of them",
    ),
    "two lengths": ({"steps": 3, "epochs": 1.0}, "steps=3, epochs=1.0: give only one of them"),
    "resume": ({"resume": True}, "resume: --out=FOLDER must say which run to resume"),
    "unused train": (
        {"train": "@all", "phase": ("train=@head steps=1",)},
        "train='@all': it is not used, because each --phase has its own train=",
    ),
    "unused steps": (
        {"steps": 3, "phase": ("train=@head steps=1",)},
        "steps=3: it is not used, because each --phase has its own length",
    ),
    "unused rates": (
        {
            "rates": "@head=1e-3",
            "train": "@all",
            "phase": ("name=a steps=1 rates=@head=1", "name=b steps=1 rates=@all=1"),
        },
        "rates='@head=1e-3': it is not used, because each --phase has its own rates=",
    ),
    "unused decays": (
        {"decays": "@head=0.1", "phase": ("train=@all steps=1 decays=@head=0",)},
        "decays='@head=0.1': it is not used, because each --phase has its own decays=",
    ),
    "a rate of 0": (
        {"rates": "@all=1e-3 @bias=0"},
        "rates='@all=1e-3 @bias=0': rule 2 `@bias=0`: expected a learning rate above 0; to keep variables as they are, "
        "leave them out of what trains, which also saves their gradients and slots: --train='@all !@bias'; the rates are "
        "then @all=1e-3",
    ),
    "rates of 0 in a run with a filter": (
        {"train": "head/.* @blocks[-2:]", "rates": "@norm=0 @bias=0"},
        "rates='@norm=0 @bias=0': rule 1 `@norm=0`: expected a learning rate above 0; to keep variables as they are, "
        "leave them out of what trains, which also saves their gradients and slots: "
        "--train='head/.* @blocks[-2:] !@norm !@bias', without rates",
    ),
    "a rate of 0 in a run of phases": (
        {"phase": ("name=a train=@head steps=1", "name={} train=@all steps=1"), "rates": "@norm=0 @head=1"},
        "rates='@norm=0 @head=1': rule 1 `@norm=0`: expected a learning rate above 0; to keep variables as they are, leave "
        "them out of what trains, which also saves their gradients and slots: train='@head !@norm' in phase a and "
        "train='@all !@norm' in phase {}; the rates are then @head=1; what a later rule gives a rate must be named again "
        "behind that",
    ),
    "a rate of 0 in a phase": (
        {"phase": ("name=a train=@head steps=1 rates=@norm=0",)},
        "phase 'a': rates='@norm=0': rule 1 `@norm=0`: expected a learning rate above 0; to keep variables as they are, "
        "leave them out of what trains, which also saves their gradients and slots: train='@head !@norm', without rates",
    ),
    "decays of adam": (
        {"optimizer": "adam", "decays": "@head=0.1"},
        "decays='@head=0.1': adam has no weight decay; use adamw, or put an L2 penalty into the regulariser of the loss",
    ),
    "way to distribute": (
        {"distribute": "multi_worker"},
        "distribute='multi_worker': expected none, mirrored or multiworker; nearest: multiworker, mirrored",
    ),
    "no devices": (
        {"distribute": "mirrored", "logical_devices": 0},
        "logical_devices=0: expected a number from 1 to 64",
    ),
    "devices of workers": (
        {"distribute": "multiworker", "logical_devices": 2},
        "logical_devices=2: they are the replicas of --distribute=mirrored; this run has --distribute=multiworker",
    ),
    "devices of a GPU": (
        {"distribute": "mirrored", "logical_devices": 2, "device": "gpu:0"},
        "logical_devices=2: the processor is divided into them, but --device=gpu:0 is a GPU; give --device=cpu, or leave "
        "out --logical_devices",
    ),
    "short timeout": ({"worker_timeout": 4.5}, "worker_timeout=4.5: expected a number of at least 5"),
    "timeout of one": (
        {"distribute": "mirrored", "worker_timeout": 30.0},
        "worker_timeout=30: it is about the workers of --distribute=multiworker; this run has --distribute=mirrored",
    ),
    "too many devices": (
        {"distribute": "mirrored", "logical_devices": 1000},
        "logical_devices=1000: expected a number from 1 to 64",
    ),
    "statistics of one": (
        {"sync_batch_norm": True},
        "sync_batch_norm: it is about several replicas, but --distribute=none has one; give --distribute=mirrored or "
        "multiworker, or leave it out",
    ),
    "statistics of parts": (
        {"distribute": "mirrored", "sync_batch_norm": True, "micro_batches": 2},
        "sync_batch_norm, micro_batches=2: BatchNorm would normalise a whole step at once, which micro-batches divide; give "
        "only one of them",
    ),
    "statistics within a budget": (
        {"distribute": "mirrored", "sync_batch_norm": True, "memory_budget": "4GB"},
        "sync_batch_norm, memory_budget=4GB: BatchNorm would normalise a whole step at once, which micro-batches divide; "
        "give only one of them",
    ),
    "a graph": (
        {"model": "graph:old.meta", "distribute": "mirrored"},
        "distribute=mirrored: --model=graph:old.meta is a graph of TensorFlow 1, which trains on one device; give "
        "--distribute=none",
    ),
    "two names": (
        {"phase": ("name=a train=@head steps=1", "name=a train=@all steps=1")},
        "phase: two phases have the same name; tell them apart with name=",
    ),
}
# fields -> part of a message that another module is the home of
ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "size of a ViT": ({"model": "vit:mimi"}, "model='vit:mimi' is not a valid ViT; expected vit:mini"),
    "model": ({"model": "vit2:mini"}, "model='vit2:mini' is not a known model; expected one of"),
    "data": ({"data": "fashion_mnist_min"}, "nearest: fashion_mnist_mini"),
    "bad_images": ({"bad_images": "skip"}, "bad_images=skip: fashion_mnist_mini has no image files"),
    "image_size": ({"image_size": "large"}, "image_size='large'"),
    "image_cache": ({"image_cache": "1 gig"}, "image_cache='1 gig'"),
    "cache_budget": ({"cache_budget": "much"}, "cache_budget='much'"),
    "memory_budget": ({"memory_budget": "lots"}, "memory_budget='lots'"),
    "augment": ({"augment": "flop"}, "nearest: flip"),
    "loss": ({"loss": "sofmax"}, "nearest: softmax"),
    "label_smoothing": ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    "precision": ({"precision": "half"}, "precision='half'"),
    "schedule": ({"schedule": "cosin"}, "nearest: cosine"),
    "schedule option": ({"schedule": "step,at=30:20"}, "at=30:20: expected numbers that rise"),
    "rates": (
        {"rates": "@haed=1e-3"},
        "rates='@haed=1e-3': rule 1 `@haed=1e-3`: `@haed` is not a group; nearest: @head",
    ),
    "decays": ({"decays": "@head"}, "decays='@head': rule 1 `@head`: expected FILTER=DECAY"),
    "phase rates": (
        {"phase": ("train=@all steps=3 rates=@head",)},
        "phase 'train': rates='@head': rule 1 `@head`: expected FILTER=RATE",
    ),
    "phase decays": ({"phase": ("train=@all steps=3 decays=@head=x",)}, "rule 1 `@head=x`: expected FILTER=DECAY"),
    "optimizer": ({"optimizer": "adamm"}, "nearest: adam"),
    "hyperparameter": ({"optimizer": "sgd", "momentum": 0.9}, "momentum: the optimizer sgd has no such hyperparameter"),
    "clip_norm": ({"clip_norm": 0.0}, "clip_norm=0"),
    "train": ({"train": "head/("}, "train='head/(': item 1 `head/(`"),
    "decay": ({"decay": "@haed"}, "decay='@haed': item 1 `@haed`"),
    "phase": ({"phase": ("stepps=3",)}, "nearest: steps"),
    "phase filter": ({"phase": ("train=@haed steps=3",)}, "phase='train=@haed steps=3': item 1 `@haed`"),
    "cache off": ({"cache": "off", "cache_views": 2}, "cache_views=2 has no effect: --cache=off caches nothing"),
    "cache_dtype": ({"cache_dtype": "int8"}, "cache_dtype='int8'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_named_with_its_value_and_the_rule(name: str) -> None:
    fields, message = BAD[name]
    with pytest.raises(InputError) as caught:
        FinetuneConfig(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_filters_and_sizes_are_checked_where_their_rules_live(name: str) -> None:
    fields, part = ELSEWHERE[name]
    with pytest.raises(InputError) as caught:
        FinetuneConfig(**fields)
    assert part in str(caught.value)


def test_flags_and_fields_are_the_same_with_the_same_defaults() -> None:
    from scripts import finetune_flags

    defined = {flag.name: flag for flag in flags.FLAGS.flags_by_module_dict()[finetune_flags.__name__]}
    fields = {field.name: field for field in dataclasses.fields(FinetuneConfig)}
    assert list(defined) == list(fields) == list(finetune_flags.HELP)
    for name, flag in defined.items():
        default = list(fields[name].default) if name == "phase" else fields[name].default
        assert (name, flag.default) == (name, default)
        assert tuple(getattr(flag.parser, "enum_values", ())) == CHOICES.get(name, ())
    assert set(fields) >= FREE


def test_paths_become_texts_and_lists_tuples_and_json_has_every_field_in_order() -> None:
    config = FinetuneConfig(out=pathlib.Path("runs/a"), phase=["train=@head steps=1"])  # type: ignore[arg-type]
    assert (config.out, config.phase) == ("runs/a", ("train=@head steps=1",))
    found = config.to_json()
    assert list(found) == [field.name for field in dataclasses.fields(FinetuneConfig)]
    assert (found["out"], found["phase"], found["learning_rate"]) == ("runs/a", ["train=@head steps=1"], 1e-3)


def test_phases_take_what_they_do_not_say_from_the_config() -> None:
    assert FinetuneConfig().phases() == []
    (phase,) = FinetuneConfig(train="@head").phases()
    assert (phase.name, phase.train, phase.steps, phase.epochs) == ("train", "@head", None, 8.0)
    one, two = FinetuneConfig(phase=("name=a", "name=b train=@all epochs=2"), train="@head", steps=3).phases()
    assert (one.train, one.steps, two.train, two.epochs) == ("@head", 3, "@all", 2.0)


def test_a_config_is_checked_without_tensorflow() -> None:
    code = """
import sys
from engine.errors import InputError
from engine.recipes.config import FinetuneConfig

FinetuneConfig(train="head/.* @blocks[-2:]", decay="!@norm", rates="@head=1", decays="@head=1", phase=("name=a steps=3",), augment="flip",
               memory_budget="1GB", precision="mixed_float16", ema=0.9, cache_dtype="bfloat16", image_size="32")
for bad in ({"train": "@haed"}, {"optimizer": "adamm"}, {"model": "resnet"}, {"loss": "sofmax"}):
    try:
        FinetuneConfig(**bad)
    except InputError:
        continue
    raise SystemExit(f"{bad} was not refused")
print([name for name in ("tensorflow", "keras", "h5py", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
