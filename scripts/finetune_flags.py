"""The flags of finetune, each with its unit, and the checks that no room of the engine makes."""

from __future__ import annotations

import math

from absl import flags

F = flags.FLAGS

# ---- what is trained on what
flags.DEFINE_string(
    "model",
    "vit:mini",
    "vit:mini, vit:Ti/16, vit:S/16, vit:B/16, vit:L/16 (any patch size; options after a comma: pool=mean, class_token, fc_norm, norm_epsilon=R, gelu=tanh, layer_scale, dropout=R, drop_path=R, depth=N, classes=N), cnn:mini; keras:NAME of keras.applications, with its options, as in keras:MobileNetV2,alpha=0.35; file:X.keras, file:X.h5 (a saved Keras model, read in safe mode; preprocess=tf|torch|caffe|unit|pixels says what its images are); or py:module:factory (imports your code: factory(image_shape, outputs) returns a tf.Module or a Keras model). Keras models keep their BatchNorm statistics unless the filter says @stats.",
)
flags.DEFINE_string(
    "head",
    None,
    "New head of a Keras model: pooling gap, gmp or flatten, then hidden layers (units) and dropout=R, as in gap,256,dropout=0.5 (keras: gap unless given; file: and py: keep their own).",
)
flags.DEFINE_string(
    "weights",
    "auto",
    "auto (those that the model brings, or ImageNet's where they are already on this machine), none (random), imagenet (keras: models; Keras downloads them), or a file: .npz (such as a run's checkpoint), safetensors, Keras HDF5 (.weights.h5, .h5) or .keras, or a TensorFlow checkpoint's prefix or folder. AugReg, Hugging Face ViT and DINOv2, timm, and our own runs are known. The head may differ: it then starts anew.",
)
flags.DEFINE_enum(
    "slots",
    "continue",
    ["continue", "fresh"],
    "Optimizer slots that the file of --weights holds (optimizer/<path>/<slot>, as port_checkpoint and a run's checkpoints write them): the first phase goes on from them where the optimizer keeps the same, or begins anew.",
)
flags.DEFINE_string(
    "rules",
    None,
    "Which tensor of --weights becomes which variable: a rule file, or frostline, vit_augreg, vit_hf, dinov2_hf, vit_timm (unless given, chosen by the names in the file).",
)
flags.DEFINE_string(
    "data",
    "fashion_mnist_mini",
    "fashion_mnist_mini (embedded), fashion_mnist (Debian's package dataset-fashion-mnist, or a download), idx:DIR (four MNIST-style files, gzipped or not), npz:FILE with train_images, train_labels [, val_*, test_*], or folder:DIR (JPEG, PNG, GIF, BMP): DIR/train, DIR/val, DIR/test with a folder a class, or DIR with a folder a class.",
)
flags.DEFINE_string(
    "image_size",
    None,
    "Pixels, N or HEIGHTxWIDTH: images are resized so that they cover it, then cropped about the centre (unless given: what the model is made for where the data are image files; other data stay as they are).",
)
flags.DEFINE_enum(
    "bad_images",
    "stop",
    ["stop", "skip"],
    "Image files of a folder that cannot be read: stop and name them, or skip (all files are decoded once at the start; run.json counts and names them).",
)
flags.DEFINE_string(
    "image_cache",
    "1GiB",
    "Memory for decoded or resized images, in bytes or with a unit (512MiB, 2GB); what does not fit is decoded again at every reading. 0 keeps none.",
)
flags.DEFINE_float(
    "eval_fraction",
    None,
    "Share of train, from 0 to 1, held out for evaluation where the data have no evaluation part (0.1 unless given); in a folder by a hash of the file's name.",
)
flags.DEFINE_integer("train_examples", None, "Use only so many training examples.")
flags.DEFINE_string(
    "augment", "", "Comma-separated: flip, crop, color, rotate, zoom, contrast; drawn by (seed, epoch, example)."
)
flags.DEFINE_string("loss", "softmax", "softmax, sigmoid (one output, or several labels) or mse.")
flags.DEFINE_float("label_smoothing", 0.0, "Share of the target spread over all classes, from 0 to below 1.")
# ---- what trains, and how long
flags.DEFINE_string("train", None, "Filter: what trains, e.g. 'head/.* @blocks[-2:] !@norm'. Alone it means one phase.")
flags.DEFINE_multi_string(
    "phase",
    [],
    "A phase, repeatable: 'name=head steps=200 train=\"head/.*\" learning_rate=1e-3'. Keys: name, train, steps | epochs | until=plateau (patience, min_delta, max_steps), learning_rate, schedule, weight_decay, layer_decay, clip_norm.",
)
flags.DEFINE_integer(
    "steps", None, "Steps (optimizer updates) in all; of the default phases the first takes a quarter."
)
flags.DEFINE_float("epochs", None, "Passes over the training part, instead of --steps (8 unless given).")
flags.DEFINE_integer(
    "early_stop", None, "End the run after so many evaluations in a row that are no better than the best."
)
flags.DEFINE_enum(
    "monitor",
    "eval_loss",
    ["eval_loss", "eval_accuracy"],
    "What 'better' means for plateau, --early_stop and --keep_best.",
)
# ---- the optimizer
flags.DEFINE_string("optimizer", "adamw", "sgd, momentum, adam or adamw.")
flags.DEFINE_float(
    "learning_rate", 1e-3, "Learning rate; of the default phases the first takes 4 times and the second 2 times it."
)
flags.DEFINE_string(
    "schedule",
    "cosine",
    "Of the learning rate within a phase: constant, cosine, linear or exponential [,warmup=N] (steps).",
)
flags.DEFINE_float("momentum", None, "Momentum of --optimizer=momentum (0.9 unless given).")
flags.DEFINE_bool("nesterov", None, "Nesterov's form of --optimizer=momentum.")
flags.DEFINE_float(
    "beta1", None, "Decay of adam's and adamw's mean of gradients, from 0 to below 1 (0.9 unless given)."
)
flags.DEFINE_float(
    "beta2", None, "Decay of adam's and adamw's mean of squares, from 0 to below 1 (0.999 unless given)."
)
flags.DEFINE_float("epsilon", None, "What adam and adamw add to the root of the mean of squares (1e-8 unless given).")
flags.DEFINE_float(
    "weight_decay", None, "Decoupled weight decay per step, times the learning rate (adamw: 0.01 unless given)."
)
flags.DEFINE_string(
    "decay", None, "Filter: which of the trained variables decay (unless given: all but @bias @norm @embedding)."
)
flags.DEFINE_float(
    "layer_decay", None, "Factor on the learning rate per layer below the output, above 0 and at most 1."
)
flags.DEFINE_float("clip_norm", None, "Largest global norm of the selection's gradient (unless given, no clipping).")
flags.DEFINE_integer("batch_size", 64, "Examples per step.")
flags.DEFINE_float(
    "ema",
    None,
    "Decay, above 0 and below 1, of averages of what trains, per step (0.9999 averages over some 10000 steps): they are evaluated, and written to ema.npz.",
)
# ---- numbers and memory
flags.DEFINE_string(
    "precision",
    "float32",
    "float32, mixed_bfloat16, mixed_float16 (variables in float32, computing in 16 bits; float16 with a dynamic loss scale) or float64.",
)
flags.DEFINE_enum(
    "nonfinite",
    None,
    ["skip", "stop"],
    "A step whose loss or gradient is not finite changes nothing; skip it and go on (after 20 in a row the run fails), or stop there. Unless given: skip with mixed_float16, whose loss scale needs it, else stop.",
)
flags.DEFINE_integer(
    "micro_batches",
    None,
    "Parts in which a step is computed, one after the other: the same result in less memory (unless given, 1, or what --memory_budget asks for).",
)
flags.DEFINE_enum(
    "remat",
    None,
    ["none", "elementwise", "blocks"],
    "What a ViT computes again in the backward pass instead of keeping it: nothing, norms and GELU, or whole blocks (unless given, none, or what --memory_budget asks for).",
)
flags.DEFINE_string(
    "memory_budget",
    None,
    "Memory of the whole process, in bytes or with a unit (3GB, 8GiB): the largest micro-batches that fit are chosen, --remat if it must be.",
)
flags.DEFINE_enum(
    "plan",
    "micro_batches",
    ["micro_batches", "depth"],
    "What --memory_budget decides: micro-batches and --remat; or depth: how many top blocks train, with the head.",
)
flags.DEFINE_bool(
    "dry_run",
    False,
    "Print what would train, the forecast of memory and the frost line, and end; nothing is written.",
)
# ---- what is frozen, computed once
flags.DEFINE_enum(
    "cache",
    "auto",
    ["auto", "off", "require"],
    "Keep what the frozen part gives of each example on disk, and train the part above the frost line from that: where it will pay (estimated from work and bytes, printed), never, or in every phase (an error where that cannot be).",
)
flags.DEFINE_string(
    "cache_dtype",
    None,
    "bfloat16 or float16: the type that kept features are stored in, half of float32's bytes (unless given, the type that the step computes in, so that nothing is rounded).",
)
flags.DEFINE_string(
    "cache_budget",
    "20GiB",
    "Disk space of all caches in --cache_dir together, in bytes or with a unit: over it caches that no run uses go first, then a cheaper line is taken, or none.",
)
flags.DEFINE_integer(
    "cache_views",
    None,
    "Augmented views that are kept of each training example, taken in turn by the epochs; needed where --augment draws anew in every epoch, and each view is computed once.",
)
flags.DEFINE_string(
    "cache_dir", None, "Folder of the caches; runs share it (unless given, feature_cache beside the run directory)."
)
# ---- what is kept
flags.DEFINE_string("out", None, "Run directory (unless given: runs/DATE-TIME-MODEL, a new one).")
flags.DEFINE_bool("resume", False, "Go on from the newest whole checkpoint in --out, with the same flags.")
flags.DEFINE_integer("eval_every", None, "Steps between evaluations (unless given, an epoch).")
flags.DEFINE_integer("log_every", 10, "Steps between lines in metrics.jsonl.")
flags.DEFINE_integer("checkpoint_every", None, "Steps between checkpoints (unless given, an epoch).")
flags.DEFINE_integer("keep", 2, "How many checkpoints stay.")
flags.DEFINE_bool("keep_best", False, "Also keep checkpoints/best.npz, by --monitor.")
flags.DEFINE_bool("histograms", False, "Histograms of trained variables in tensorboard/.")
flags.DEFINE_integer("seed", 0, "Of initial weights, order, augmentation and dropout.")
flags.DEFINE_bool("deterministic", True, "Deterministic ops: the same flags give the same bits on the same machine.")


def check_numbers() -> None:
    """Flags that no room checks by itself."""
    from engine.errors import InputError

    for name in (
        "steps",
        "epochs",
        "learning_rate",
        "early_stop",
        "eval_every",
        "log_every",
        "checkpoint_every",
        "keep",
    ):
        value = F[name].value
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name}={value}: it must be above 0")
    if F.rules is not None and F.weights in ("auto", "none"):
        raise InputError(f"rules={F.rules}: they say how a file is read; --weights={F.weights} names none")
    if F.micro_batches is not None and not 1 <= F.micro_batches <= F.batch_size:
        raise InputError(
            f"micro_batches={F.micro_batches}: a step of --batch_size={F.batch_size} examples has from 1 to "
            f"{F.batch_size} parts"
        )
    if F.plan == "depth":
        if F.memory_budget is None:
            raise InputError("plan=depth: --memory_budget says what must fit")
        if F.train is not None or F.phase:
            raise InputError("plan=depth: it decides what trains; leave --train and --phase out")
    elif F.memory_budget is not None and F.micro_batches is not None:
        raise InputError(
            f"micro_batches={F.micro_batches}, memory_budget={F.memory_budget}: the budget decides the micro-batches; "
            "give one of them"
        )
    if not 0 <= F.seed < 2**31:
        raise InputError(f"seed={F.seed}: it lies between 0 and {2**31 - 1}")
    if F.steps is not None and F.epochs is not None:
        raise InputError(f"steps={F.steps}, epochs={F.epochs}: give one of them")
