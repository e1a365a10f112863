"""The flags of benchmark_freezing: one for each field of ``engine.study.config.StudyConfig``."""

from __future__ import annotations

from absl import flags

from engine.study.config import StudyConfig
from engine.study.quality.settings import MODES, SEARCHES

from . import cli

HELP = {
    # ---- the job
    "model": "The model, as in finetune: vit:mini, vit:Ti/16 ... vit:L/16, cnn:mini, keras:NAME of keras.applications, file:X.keras, py:module:factory.",
    "head": "A new head for a Keras model, as in finetune: gap, gap,256 and the like.",
    "weights": "auto (the weights that ship with the model, or ImageNet's if they are already on this machine), none (random), imagenet, or a file that finetune accepts. A choice among strategies that start from random weights says little about fine-tuning.",
    "data": "The data, as in finetune: fashion_mnist_mini, fashion_mnist, idx:DIR, npz:FILE, folder:DIR.",
    "image_size": "The size in pixels, N or HEIGHTxWIDTH, to which images are resized. By default image files are resized to the size that the model is made for, and other data are left as they are.",
    "train_examples": "The number of training examples to use; 0 uses all. By default 512 or all there are, so that a short run sees each example several times; of quality mode all.",
    "eval_examples": "The number of evaluation examples to use; 0 uses all. By default 192 or all there are, so that evaluation does not take longer than training; of quality mode all.",
    "eval_fraction": "The share of the training part that is held out for evaluation if the data have no evaluation part (0.1 by default).",
    "loss": "The loss, by name; mse comes without an accuracy.",
    # ---- the comparison
    "mode": "cost (time and memory, each run in a process of its own), quality (the best learning rate of each strategy, chosen on the evaluation part and judged once on the test part), or both.",
    "strategies": "The strategies, comma-separated or repeated: head; last_N (the head and the last N parts: a ViT's blocks, a Keras model's groups of layers, otherwise what lies at the top of the model); norms, bias, attention (those variables and the head); gradual (the head, then half of the parts too, then everything, for a third of the steps each); gradual_plateau (the head, then one more part whenever the loss of an evaluation does not improve on the best one so far by more than 0.02); full; or name=FILTER. On request also first_N (the head and the first N parts), layer_decay (everything, with learning rates that fall to 1/32 at the lowest layer), lp_ft (the head until a plateau, or for half of the steps, then everything at 0.03 times the rate), l2_sp (everything by adamw, whose weight decay of 0.1 pulls to the start), lora_N, ssf and adapter_N (adapters of rank or size N, by default 4, and the head); of quality mode also auto_freeze (everything, and ever fewer of the lower parts as they stop learning) and NAME+wise_ft (the weights of a strategy averaged with those that it started from, in the share that does best on the evaluation part; wise_ft alone is that of full). By default all others that this model has (quality mode: without gradual, with lp_ft, lora and wise_ft), with N = 1, 2, 4, 8 and all parts (every N if there are at most 4 parts; N = 1, 4, 16 ... and all if there are more than 12); of strategies that train the same, only one is run.",
    "train": "A filter: one more strategy, named train.",
    "skip_unmatched": "Leave out, and name, strategies that match nothing on this model.",
    "runners": "The runners, comma-separated: engine, engine_cached (what is frozen is computed once and cached), keras_fit (Keras' own fit, for Keras models), v1_trainable, v1_stop_gradient, v1_var_list (TF1 graphs, for vit: and cnn:mini). By default all that the model allows.",
    "repeats": "How many times each strategy is run by each runner, in an order that is rotated from repeat to repeat (by default 3, with --quick 1).",
    "quick": "Give a first answer in a few minutes: unless given otherwise, few strategies, the runners engine and engine_cached and one more, one repeat, and half the steps.",
    # ---- training
    "precision": "float32, mixed_bfloat16, mixed_float16 or float64.",
    "micro_batches": "The number of micro-batches in which a step is computed, one after the other (not by keras_fit).",
    "batch_size": "The number of examples per step (one optimizer update).",
    "steps": "The number of steps of each run, over all its phases (by default 21, for a Keras model 12; of quality mode 256 and 64).",
    "epochs": "The length of a run in passes over the training examples, instead of --steps.",
    "learning_rate": "The learning rate of Adam, constant and the same for all strategies; layer_decay and the second phase of lp_ft take a part of it.",
    # ---- quality mode
    "learning_rates": "Of quality mode: the learning rates to try, comma-separated; or auto, a grid of 3 around a range test, which goes on beyond its end where the best rate lies there (not with --quick).",
    "seeds": "Of quality mode: the number of seeds, from --seed on, with which each rate is trained.",
    "search": "Of quality mode: grid trains each rate to the end; halving drops the worse half of the rates after a fourth and after a half of the steps.",
    "schedule": "Of quality mode: the schedule of the learning rate, as in finetune.",
    "early_stop": "Of quality mode: end a trial after this many evaluations without improvement.",
    "corrupt": "Of quality mode: the corruptions through which the test part is seen as well, as in evaluate: all, KIND:STRENGTH, ..., or none. By default all (with --quick those of strength 2), and none of data that are not images.",
    # ---- steps
    "eval_every": "The number of steps between evaluations (by default a third of the steps, of quality mode a fourth).",
    "target_accuracy": "The accuracy, above 0 and at most 1, for which the time to reach it is reported (by default 95% of the best final accuracy).",
    "seed": "The seed of new weights and of the order of the data.",
    # ---- files
    "out": "The folder of the study (by default runs/DATE-TIME-freezing-MODEL). A folder that holds the same study is continued: only missing and failed runs are done.",
    "redo_disturbed": "With the --out of a study: repeat the runs during which other programs had over a tenth of the machine's time.",
    "histograms": "Write histograms of weights and gradients at each evaluation of the runners engine and engine_cached: OUT/tensorboard, and one picture per strategy in OUT/histograms. Their time is not counted; the memory of such runs is higher.",
    "check_numerics": "If a step is not finite, name the first operation and variable where that began.",
}
cli.define_flags(
    __name__,
    HELP,
    cli.field_defaults(StudyConfig),
    choices={"loss": ["softmax", "sigmoid", "mse"], "mode": list(MODES), "search": list(SEARCHES)},
    repeatable=("strategies",),
)


def read_config() -> StudyConfig:
    """The study that the flags describe; raises as ``StudyConfig``."""
    return StudyConfig(**{name: flags.FLAGS[name].value for name in HELP})
