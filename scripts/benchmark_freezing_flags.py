"""The flags of benchmark_freezing, and the checks that no room of the engine makes."""

from __future__ import annotations

import math

from absl import flags

F = flags.FLAGS

# ---- what is asked
flags.DEFINE_string(
    "model",
    "vit:mini",
    "As in finetune: vit:mini, vit:Ti/16 ... vit:L/16, cnn:mini, keras:NAME of keras.applications, file:X.keras, py:module:factory.",
)
flags.DEFINE_string("head", None, "New head of a Keras model, as in finetune: gap, gap,256 and the like.")
flags.DEFINE_string(
    "weights",
    "auto",
    "auto (those that ship with the model, or ImageNet's where they are already on this machine), none (random), imagenet, or a file that finetune takes. A choice among strategies from random weights says little about fine-tuning.",
)
flags.DEFINE_string(
    "data", "fashion_mnist_mini", "As in finetune: fashion_mnist_mini, fashion_mnist, idx:DIR, npz:FILE, folder:DIR."
)
flags.DEFINE_string(
    "image_size",
    None,
    "Pixels, N or HEIGHTxWIDTH, that images are resized to (unless given: what the model is made for where the data are image files; other data stay as they are).",
)
flags.DEFINE_integer(
    "train_examples",
    None,
    "Use only so many training examples (unless given, 512 or all there are, so that a short run sees each several times; 0: all).",
)
flags.DEFINE_integer(
    "eval_examples",
    None,
    "Use only so many evaluation examples (unless given, 192 or all there are, so that evaluating does not take longer than training; 0: all).",
)
flags.DEFINE_float(
    "eval_fraction", None, "Share of train held out for evaluation where the data have no evaluation part (0.1)."
)
flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid", "mse"], "The loss, by name; mse has no accuracy.")
# ---- what is compared
flags.DEFINE_multi_string(
    "strategies",
    [],
    "Comma-separated, or repeated: head; last_N (the head and the last N parts: a ViT's blocks, a Keras model's groups of layers, else what lies at the top of the model); norms, bias, attention (those variables and the head); gradual (the head, then half of the parts too, then everything, a third of the steps each); gradual_plateau (the head, then one part more whenever an evaluation is no better than the best before by 0.02 of the loss); full; or name=FILTER. Unless given: all that this model has, with N = 1, 2, 4, 8 and all parts (of at most 4, each N; of more than 12, N = 1, 4, 16 ... and all); what trains the same as another is there once.",
)
flags.DEFINE_string("train", None, "Filter: one more strategy, named train.")
flags.DEFINE_bool("skip_unmatched", False, "Leave out, and name, strategies that match nothing on this model.")
flags.DEFINE_list(
    "runners",
    [],
    "Comma-separated: engine, engine_cached (what is frozen is computed once and kept), keras_fit (Keras' own fit, for Keras models), v1_trainable, v1_stop_gradient, v1_var_list (TF1 graphs, for vit: and cnn:mini). Unless given: all that the model allows.",
)
flags.DEFINE_integer(
    "repeats", 3, "Runs of each strategy by each runner, in an order that is turned from repeat to repeat."
)
flags.DEFINE_bool(
    "quick",
    False,
    "A first answer in a few minutes: unless given otherwise, few strategies, engine, engine_cached and one more runner, one repeat, half the steps.",
)
# ---- how it trains
flags.DEFINE_string("precision", "float32", "float32, mixed_bfloat16, mixed_float16 or float64.")
flags.DEFINE_integer("micro_batches", 1, "Parts in which a step is computed, one after the other (not by keras_fit).")
flags.DEFINE_integer("batch_size", 32, "Examples per step (one optimizer update).")
flags.DEFINE_integer("steps", None, "Steps of each run, whatever its phases (unless given: 21, for a Keras model 12).")
flags.DEFINE_float("epochs", None, "Passes over the training examples, instead of --steps.")
flags.DEFINE_float("learning_rate", 1e-3, "Of Adam, constant, the same for all strategies.")
flags.DEFINE_integer("eval_every", None, "Steps between evaluations (unless given, a third of the steps).")
flags.DEFINE_float(
    "target_accuracy",
    None,
    "Accuracy, above 0 and at most 1, whose time is reported (unless given, 95% of the best final accuracy).",
)
flags.DEFINE_integer("seed", 0, "Of new weights and of the order of the data.")
# ---- what is kept
flags.DEFINE_string(
    "out",
    None,
    "Folder of the study (unless given: runs/DATE-TIME-freezing-MODEL). A folder that holds the same study is gone on with: only what is missing or failed is run.",
)
flags.DEFINE_bool(
    "redo_disturbed",
    False,
    "With the --out of a study: run again what was measured while others had over a tenth of the machine's time.",
)
flags.DEFINE_bool(
    "histograms",
    False,
    "Histograms of weights and gradients at each evaluation of the runners engine and engine_cached: OUT/tensorboard, and one picture a strategy in OUT/histograms. Their time is not counted; the memory of such runs is higher.",
)
flags.DEFINE_bool(
    "check_numerics", False, "If a step is not finite, name the first operation and variable where that began."
)


def check_numbers() -> None:
    """Flags that no room checks by itself."""
    from engine.errors import InputError

    for name, (low, high) in {
        "repeats": (1, 1000),
        "batch_size": (1, 65536),
        "micro_batches": (1, F.batch_size),
        "steps": (1, 10_000_000),
        "eval_every": (1, 10_000_000),
        "train_examples": (0, 2**31),
        "eval_examples": (0, 2**31),
        "seed": (0, 2**31 - 1),
    }.items():
        value = F[name].value
        if value is not None and not low <= value <= high:
            raise InputError(f"{name}={value}: it lies between {low} and {high}")
    for name in ("learning_rate", "epochs"):
        value = F[name].value
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name}={value}: it must be above 0")
    if F.target_accuracy is not None and not 0 < F.target_accuracy <= 1:
        raise InputError(f"target_accuracy={F.target_accuracy}: it lies above 0 and is at most 1")
    if F.steps is not None and F.epochs is not None:
        raise InputError(f"steps={F.steps}, epochs={F.epochs}: give one of them")
