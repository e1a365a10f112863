"""The flags of finetune: the help of each field of FinetuneConfig."""

from __future__ import annotations

from absl import flags

from engine.recipes.config import CHOICES, FinetuneConfig

from . import cli

HELP = {
    # ---- what is trained on what
    "model": "vit:mini, vit:Ti/16, vit:S/16, vit:B/16, vit:L/16 (any patch size; options after a comma: pool=mean, class_token, fc_norm, norm_epsilon=R, gelu=tanh, layer_scale, dropout=R, drop_path=R, depth=N, classes=N), cnn:mini; keras:NAME from keras.applications, with its options, such as keras:MobileNetV2,alpha=0.35; file:X.keras or file:X.h5 (a saved Keras model, read in safe mode); savedmodel:DIR and hub:HANDLE (a SavedModel of TensorFlow 2 or 1; a folder, or an address in the cache of TensorFlow Hub) with signature=NAME, output=NAME, tags=NAME and preprocess=MODE; graph:PATH, a graph of TensorFlow 1 (.meta, SavedModel, hub module, graph.pbtxt, frozen .pb) with preprocess=MODE; or py:module:factory (imports your code: factory(image_shape, outputs) returns a tf.Module or a Keras model). For both, preprocess=tf|torch|caffe|unit|pixels says how images are scaled, where the network does not show it. Keras models keep their BatchNorm statistics unless the filter says @stats.",
    "tags": "For --model=graph:PATH: the tags of the graph in a SavedModel, separated by commas (default: the only graph, or the one that serves).",
    "inputs": "For graph:PATH: the tensor that is fed with images, as NAME or NAME[None,224,224,3]; NAME=VALUE fixes others (default: the only one).",
    "outputs": "For graph:PATH: the tensor with the outputs of the network (default: the only one). A softmax at its end is left out where the loss expects logits.",
    "features": "For graph:PATH: the tensor on which --head puts a new head, instead of the old outputs.",
    "graph_inputs": "For graph:PATH: values of its switches in training, as in 'is_training=True keep_prob=0.8'; NAME=TRAINING/EVALUATION gives both, and NAME=label feeds the labels (default: is_training and the like are found by what they do).",
    "constants": "For graph:FILE.pb, a frozen graph: which constants are weights, where it is not clear: REGEX makes them weights, !REGEX leaves them constants (default: what is known to be one).",
    "head": "New head of a Keras model, or of a graph on --features. With outputs for each pixel: unet (decoder on the stages of the trunk) or aspp (on its last map), with filters, such as unet,128,64,32,16,16. Otherwise pooling gap, gmp or flatten, then hidden layers (units) and dropout=R, such as gap,256,dropout=0.5 (default for keras: models: gap; file: and py: models keep their own). centers finds objects, with --loss=centers: a decoder as unet's down to stride=4 pixels, with filters (centers,stride=8).",
    "weights": "auto (the weights that ship with the model, or ImageNet's if they are already on this machine), none (random), imagenet (keras: models; Keras downloads them), or a file: .npz (such as a run's checkpoint), safetensors, Keras HDF5 (.weights.h5, .h5) or .keras, the prefix or folder of a TensorFlow checkpoint, or a frozen graph (.pb). AugReg, Hugging Face ViT and DINOv2, timm, and our own runs are recognised. A head of another shape starts anew. BASE+RUN/trained.npz[+RUN/trained.npz] puts what runs trained onto any of these, in order.",
    "slots": "Optimizer slots in the file of --weights (optimizer/<path>/<slot>, as port_checkpoint and a run's checkpoints write them): continue from them in the first phase, where the optimizer keeps the same slots, or start fresh.",
    "rules": "Which tensor of --weights becomes which variable: a rule file, or the name of a shipped one: frostline, vit_augreg, vit_hf, dinov2_hf, vit_timm, or one for a network of TensorFlow 1 (default: chosen by the names in the file).",
    "adapt": "Adapters beside frozen layers: KIND[:options] FILTER, several separated by `;`. KIND is lora:rank=N[,alpha=R] (low rank; alpha is by default the rank), ssf (scale and shift of outputs) or adapter:size=N (bottleneck in parallel); FILTER names the kernels that get one, such as @attention. Without --train, @adapters and @head train. Exports and apply-delta merge lora and ssf (docs/adapters.md).",
    "force_base": "With --weights=BASE+DELTA: put the delta also onto weights that it does not belong to.",
    "data": "fashion_mnist_mini (embedded), fashion_mnist (Debian's package dataset-fashion-mnist, or a download), idx:DIR (four MNIST-style files, gzipped or not), npz:FILE with train_images, train_labels [, val_*, test_*], or folder:DIR (JPEG, PNG, GIF, BMP; with masks: DIR/images and DIR/masks, also below train, val and test): DIR/train, DIR/val (or valid, validation, dev, eval), DIR/test with one folder per class, or DIR with one folder per class (WebP and TIFF too, where Pillow is installed); csv:FILE[,image=COLUMN][,features=COLUMN][,label=COLUMN[:class|:number]][,weight=COLUMN][,split=COLUMN], a manifest; table:FILE, vectors (CSV, or .npz with x and y; ,standardise); boxes:FILE, images with boxes around objects (columns image, x1, y1, x2, y2, class [, split]; docs/detection.md); tfds:NAME[:VERSION][,split=...], prepared by TensorFlow Datasets; text:PATH, texts for a bert: model (.tsv, .csv, .jsonl, or a folder of parts or of .txt files per class; docs/text.md); py:module:name, your own (docs/data_and_models.md).",
    "image_size": "Pixels, N or HEIGHTxWIDTH: images are resized to cover this size, then cropped about the centre (default: image files get the size that the model is made for; other data stay as they are).",
    "bad_images": "Image files of a folder that cannot be read: stop and name them, or skip them (all files are decoded once at the start; run.json counts and names them).",
    "image_cache": "Memory for decoded or resized images, in bytes or with a unit (512MiB, 2GB); images that do not fit are decoded again at every reading. 0 keeps none.",
    "parts": "off: every folder of folder:DIR is a class, also one that is called train, val or test (default: a folder with such a name is a part, where its content fits).",
    "image_pixels": "rgb: image files become 8-bit colour. stored: they keep their channels (one to many; the pages of a TIFF are channels too) and their values, 16 bits and floats as float32 from 0 to 1; all files have the same number of channels. An npz:FILE may then have any number of channels.",
    "image_fit": "cover: images are resized to cover --image_size, and cropped. pad: they are resized to fit within it, keeping their shape, and padded with zeros.",
    "image_mask": "Add a channel to images, the last: 1 for the image's own pixels, 0 for padding (--image_fit=pad) and missing pixels (--nan=zero).",
    "nan": "NaN among float pixels or features: stop with an error, or zero, which reads it as missing (0; the mean, where features are standardised).",
    "masks": "What the numbers in label images mean, in a folder with images/ and masks/ (PNG, uint8 or uint16): classes (from 0; 255 is ignored), or instances (0 is background, any other number an object); either may name another ignored number, as in classes,ignore=0, or ignore=none. Default: classes, unless the numbers look like anything else, which is asked about.",
    "max_tokens": "Of --data=text:PATH: the tokens of an example; longer texts are cut, shorter ones filled up (default: 128, or all that the model has positions for).",
    "eval_fraction": "Share of the training part, between 0 and 1, held out for evaluation if the data have no evaluation part (default: 0.1); in a folder by a hash of the file's name.",
    "train_examples": "Use only this many training examples.",
    "augment": "Comma-separated: flip, crop, color, rotate, zoom, contrast; drawn by (seed, epoch, example). Boxes move along, and refuse rotate.",
    "loss": "softmax, sigmoid (one output, or several labels), mse, focal [gamma=R alpha=R] (of classes or labels), with masks softmax, dice or softmax+dice (of the class of each pixel), centers [size_weight=R offset_weight=R] (of objects, as boxes), or py:module:name (imports your code: function(outputs, labels, weights) returns a value for each example); graph:NAME is a loss tensor of --model=graph:PATH. Options follow after spaces, as in 'focal gamma=1'. With several labels for an example, the loss of each output by its name, and how much it counts: 'species=softmax, age=mse weight=0.3' (docs/several_outputs.md).",
    "label_smoothing": "Share of the target spread over all classes, from 0 to below 1; with several outputs, an option of a loss.",
    "class_weights": "Weights of classes in the loss of softmax, focal, or sigmoid with one output: balanced (n / (classes * examples of the class), of the training part) or a JSON or CSV file {class: weight}. Accuracies do not use them. With several outputs, an option of a loss: 'species=softmax class_weights=balanced'.",
    "sample_weights": "Weights of training examples in the loss, which multiply those in the data: a CSV file with lines example,weight or a JSON file {example: weight}. Where images are files, an example is the path of its image as the data have it; otherwise its number, from 0. Those that the file does not name weigh 1; evaluations use none of it.",
    # ---- what trains, and how long
    "train": "Filter: what trains, e.g. 'head/.* @blocks[-2:] !@norm'. Without --phase there is then one phase.",
    "auto_freeze": "Freeze parts while they train, from the input on, once their weights hardly move any more: on, or threshold=R,patience=N (defaults: 0.25 and 2): at N evaluations in a row they moved at most R times as far since the evaluation before as they once did. Features below are cached where that pays (docs/auto_freezing.md). Without --train, everything trains at first.",
    "phase": "A phase, repeatable: 'name=head steps=200 train=\"head/.*\" learning_rate=1e-3'. Keys: name, train, steps | epochs | until=plateau (patience, min_delta, max_steps), learning_rate, schedule, rates, weight_decay, decays, layer_decay, clip_norm; losses=NAME,NAME (the outputs whose losses count, of several); group=NAME and repeat=N (phases in a row with the same group take turns, N times).",
    "steps": "Total number of steps (optimizer updates); the first of the default phases takes a quarter of them.",
    "epochs": "Passes over the training part, instead of --steps (default: 8).",
    "early_stop": "End the run after this many evaluations in a row that are no better than the best one.",
    "metrics": "Figures that evaluations compute beside loss and accuracy, over all examples at once and weighted as the loss, separated by commas: f1, precision, recall, balanced_accuracy (means over classes), topK such as top5, auc, confusion (a table); mae, mse, rmse, r2 for the loss mse; py:module:name (your own). OUTPUT:METRIC is for one of several outputs (docs/metrics.md).",
    "monitor": "What 'better' means for plateau, --early_stop and --keep_best: eval_loss, eval_accuracy, or eval_NAME of one of --metrics, such as eval_f1.",
    # ---- the optimizer
    "optimizer": "sgd, momentum, adam, adamw, rmsprop, adagrad, adadelta or ftrl, with the hyperparameters of TensorFlow 1 as defaults; options after commas, such as rmsprop,momentum=0.9,epsilon=1.0,centered. Besides those that are flags: rho, centered, epsilon_placement=inside|outside and initial_accumulator of rmsprop; initial_accumulator of adagrad; rho of adadelta; learning_rate_power, initial_accumulator, l1, l2, l2_shrinkage and beta of ftrl, which needs a constant learning rate; epsilon_placement=uncorrected|corrected of adam and adamw. py:module:name is your own (docs/extending.md).",
    "learning_rate": "Learning rate; the default phases multiply it by 4 (first phase) and by 2 (second phase).",
    "schedule": "Schedule of the learning rate within a phase: constant; cosine or linear [,end=R]; polynomial,power=R[,end=R] (end is the learning rate at the end, by default 0); exponential (to a hundredth over the phase) or exponential,rate=R,steps=N[,staircase] (times R every N steps); step,at=N:N[,factor=R] (times R, by default 0.1, after N steps of the phase). Each takes warmup=N, the steps in which the rate first rises. py:module:name is your own function of (step, steps of the phase) that returns the factor.",
    "rates": "Learning rates by filter, such as '@head=1e-3 @blocks[-2:]=1e-4': the last rule that matches a variable decides, and one that no rule matches takes --learning_rate. The schedule scales all alike; --layer_decay concerns only --learning_rate. 0 is an error: leave out of --train what should not move.",
    "momentum": "Momentum of --optimizer=momentum (default: 0.9) and rmsprop (default: 0).",
    "nesterov": "Use Nesterov's form of --optimizer=momentum.",
    "beta1": "Decay of the mean of gradients in adam and adamw, from 0 to below 1 (default: 0.9).",
    "beta2": "Decay of the mean of squared gradients in adam and adamw, from 0 to below 1 (default: 0.999).",
    "epsilon": "Added by adam and adamw to the root of the mean of squares (default: 1e-8), and by rmsprop (1e-10), adadelta (1e-8) and adagrad (0).",
    "weight_decay": "Decoupled weight decay per step, times the learning rate (default for adamw: 0.01).",
    "decay": "Filter: which trained variables decay (default: all but @bias @norm @embedding @ssf).",
    "decays": "Weight decays by filter, such as '@head=0.1 @blocks=0', instead of --weight_decay: the last rule that matches a variable decides. Only what --decay says decays.",
    "decay_toward": "What weight decay pulls to: zero (default), or start, the values that variables have when they begin to train, so that they stay near the weights that training starts from (L2-SP). A slot keeps them.",
    "layer_decay": "Factor on the learning rate per layer below the output, above 0 and at most 1.",
    "clip_norm": "Largest global norm of the selection's gradient (default: no clipping).",
    "batch_size": "Examples per step.",
    "ema": "Decay, above 0 and below 1, of running averages of the trained variables, per step (0.9999 averages over about 10000 steps): evaluations use the averages, and ema.npz holds them.",
    # ---- numbers and memory
    "precision": "float32, mixed_bfloat16, mixed_float16 (variables in float32, computation in 16 bits; float16 with a dynamic loss scale) or float64; auto takes mixed_bfloat16 where the device multiplies bfloat16 at least 1.5 times as fast as float32 and steps of the model are at least 1.1 times as fast, else float32. The figures are printed, and a resume keeps the choice.",
    "jit_compile": "Compile the whole step with XLA: on, off, or auto (on for GPUs, off for CPUs). It takes some time at the first step, and once more for each other batch size. A resume may change it.",
    "device": "Device to compute on: auto (the first GPU if there is one, else the CPU), cpu or gpu:N. A resume may change it.",
    "distribute": "Over what each step's examples are divided: none (one device), mirrored (all GPUs of this machine, or --logical_devices), or multiworker (one process for each entry of the cluster in the environment variable TF_CONFIG, all started with the same command). --batch_size is that of the whole step, whatever the number of devices. A resume may change it.",
    "logical_devices": "Divide the processor into this many devices, the replicas of --distribute=mirrored (default: all GPUs, or the processor as one device).",
    "worker_timeout": "Seconds, at least 5: how long the workers of --distribute=multiworker wait for one another at the start, and after how long one that has died or stands still ends the run.",
    "sync_batch_norm": "BatchNorm layers in training mode normalise by the statistics of the whole step instead of those of a replica's share.",
    "nonfinite": "A step whose loss or gradient is not finite changes nothing: skip it and go on (after 20 in a row the run fails), or stop there. Default: skip with mixed_float16, whose loss scale needs it, otherwise stop.",
    "micro_batches": "Parts in which a step is computed, one after the other: the same result in less memory (default: 1, or what --memory_budget requires).",
    "remat": "What a ViT recomputes in the backward pass instead of keeping it: nothing, norms and GELU, or whole blocks (default: none, or what --memory_budget requires).",
    "memory_budget": "Memory of the whole process, or on a GPU the GPU's, in bytes or with a unit (3GB, 8GiB): the run takes the largest micro-batches that fit, and --remat if necessary.",
    "plan": "What --memory_budget decides: micro-batches and --remat, or depth: how many of the top blocks train along with the head.",
    "dry_run": "Print what would train, the memory forecast and the frost line, then exit; nothing is written.",
    # ---- what is frozen, computed once
    "cache": "Keep the output of the frozen part on disk for each example, and train the part above the frost line from it: where it is estimated to pay (from work and bytes; the estimate is printed), never, or in every phase (an error where that is impossible).",
    "cache_dtype": "bfloat16 or float16: the type in which features are stored, half of float32's bytes (default: the type that the step computes in, so that nothing is rounded).",
    "cache_budget": "Disk space for all caches in --cache_dir together, in bytes or with a unit: if it is exceeded, caches that no run uses are removed first, then a cheaper frost line is chosen, or none.",
    "cache_views": "Augmented views kept of each training example, used by the epochs in turn; needed where --augment draws anew in every epoch. Each view is computed once.",
    "cache_dir": "Folder of the caches; runs share it (default: feature_cache next to the run directory).",
    # ---- what is kept
    "out": "Run directory (default: a new one, runs/DATE-TIME-MODEL).",
    "resume": "Go on from the newest undamaged checkpoint in --out, with the flags of the run; --data may say where the same data lie now.",
    "eval_every": "Steps between evaluations (default: one epoch).",
    "log_every": "Steps between lines in metrics.jsonl.",
    "checkpoint_every": "Steps between checkpoints (default: one epoch).",
    "keep": "How many checkpoints are kept.",
    "keep_best": "Also keep the best checkpoint by --monitor, checkpoints/best.npz.",
    "histograms": "Write histograms of trained variables to tensorboard/.",
    "seed": "Seed of initial weights, order, augmentation and dropout.",
    "deterministic": "Use deterministic ops: the same flags give the same bits on the same machine.",
}

cli.define_flags(__name__, HELP, cli.field_defaults(FinetuneConfig), choices=CHOICES, repeatable=("phase",))


def config() -> FinetuneConfig:
    """The config that the flags ask for; raises InputError if one is not valid, or contradicts another.

    With --resume, flags that are not given are those of the run in --out.
    """
    if flags.FLAGS.resume and flags.FLAGS.out is not None:
        from engine.recipes.resuming import resume_config

        return resume_config(
            flags.FLAGS.out, {name: flags.FLAGS[name].value for name in HELP if flags.FLAGS[name].present}
        )
    return FinetuneConfig(**{name: flags.FLAGS[name].value for name in HELP})
