"""TensorFlow 1: freezing, training, checkpoints and graphs of tf.compat.v1, and the way from there to TensorFlow 2.

``training`` freezes and trains in a Session; ``checkpoints`` reads and writes V1 and V2 checkpoints; ``graphs`` reads
old graphs as data and runs the part that some outputs need; ``porting`` ports a checkpoint with its optimizer slots to
a new model, carries weights back, and proves that both models compute the same. ``examples`` has two ported networks.
``models`` makes an old graph a model of the engine: importing compat_v1 adds ``graph:PATH`` to what ``build_model`` takes.
"""

import importlib

from engine.models.outside import register_family

register_family("graph", lambda: importlib.import_module("compat_v1.models.build"))
