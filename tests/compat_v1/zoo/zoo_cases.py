"""The networks of the zoo: each in TensorFlow 1, and as the model that its checkpoint becomes by the shipped rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import inceptions
import mobilenets
import others
import resnets
import tensorflow as tf
import transformers
import vggs
from slim_layers import Layers, Network

from compat_v1.examples import (
    bert,
    bit_resnet,
    deeplab,
    efficientnet,
    inception_resnet,
    slim_inception,
    slim_nasnet,
    slim_resnet,
    vggish,
)


class Case(NamedTuple):
    """A network in TensorFlow 1, and the model that its checkpoint becomes by the rules.

    ``background`` is whether the old network has a class that the model lacks, ``swapped`` whether the model takes
    colours in the other order, and ``averages`` whether the checkpoint has averages, which the model is to take.
    """

    rules: str
    network: Network
    layers: Layers
    model: Callable[[], Any]
    size: int | tuple[int, int, int]
    background: bool = False
    swapped: bool = False
    averages: bool = False


def application(name: str, size: int, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        import keras

        return getattr(keras.applications, name)(
            input_shape=(size, size, 3), weights=None, classifier_activation=None, **options
        )

    return build


RESNET = Layers(epsilon=1e-5)
INCEPTION = Layers(gamma=False)
RELU6 = Layers(activation=tf.nn.relu6)
SWISH = Layers(activation=mobilenets.hard_swish)


def eighth(filters: int) -> int:
    return max(8, filters // 8)


QUICK = {
    "resnet_v1": Case(
        "slim_resnet_v1",
        resnets.resnet(1, 50, width=8, units=(2, 1, 1, 1), classes=10),
        RESNET,
        lambda: slim_resnet.build_v1((2, 1, 1, 1), (64, 64, 3), 10, width=8),
        64,
    ),
    "mobilenet_v1": Case(
        "slim_mobilenet_v1",
        mobilenets.v1(alpha=0.25),
        RELU6,
        application("MobileNet", 32, alpha=0.25),
        32,
        background=True,
    ),
    "inception_v1": Case(
        "slim_inception",
        inceptions.v1(scale=eighth),
        INCEPTION,
        lambda: slim_inception.build(slim_inception.V1, (40, 40, 3), 1000, name="small", scale=eighth),
        40,
        background=True,
    ),
    "efficientnet": Case(
        "efficientnet",
        others.efficientnet("b0", 0.25, 0.3, classes=10),
        Layers(),
        lambda: efficientnet.build(0.25, 0.3, (32, 32, 3), 10),
        32,
        averages=True,
    ),
    "bit": Case(
        "bit_resnet",
        resnets.bit(50, factor=0.5, units=(1, 1), classes=10),
        Layers(),
        lambda: bit_resnet.build((1, 1), 0.5, (32, 32, 3), 10),
        32,
    ),
    "bert": Case(
        "bert",
        transformers.bert(100, width=32, depth=1, heads=4, positions=32),
        Layers(),
        lambda: bert.build(100, width=32, depth=1, heads=4, positions=32),
        0,
    ),
}
SLOW = {
    f"resnet_v{version}_{depth}": Case(
        f"slim_resnet_v{version}",
        resnets.resnet(version, depth, classes=1000 if version == 1 else 1001),
        RESNET,
        lambda version=version, depth=depth: getattr(slim_resnet, f"v{version}_{depth}")((65, 65, 3)),
        65,
        background=version == 2,
    )
    for version in (1, 2)
    for depth in (50, 101, 152)
}
SLOW |= {
    "mobilenet_v1": Case(
        "slim_mobilenet_v1", mobilenets.v1(), RELU6, application("MobileNet", 64), 64, background=True
    ),
    "mobilenet_v2": Case(
        "slim_mobilenet_v2", mobilenets.v2(), RELU6, application("MobileNetV2", 75), 75, background=True
    ),
    "mobilenet_v3_large": Case(
        "slim_mobilenet_v3_large",
        mobilenets.v3("large"),
        SWISH,
        application("MobileNetV3Large", 160, include_preprocessing=False),
        160,
        background=True,
    ),
    "mobilenet_v3_small": Case(
        "slim_mobilenet_v3_small",
        mobilenets.v3("small"),
        SWISH,
        application("MobileNetV3Small", 160, include_preprocessing=False),
        160,
        background=True,
    ),
    "vgg_16": Case("slim_vgg", vggs.vgg(16), Layers(), application("VGG16", 32), 32, swapped=True),
    "vgg_19": Case("slim_vgg", vggs.vgg(19), Layers(), application("VGG19", 32), 32, swapped=True),
    "inception_v1": Case(
        "slim_inception", inceptions.v1(), INCEPTION, lambda: slim_inception.v1((75, 75, 3)), 75, background=True
    ),
    "inception_v2": Case(
        "slim_inception", inceptions.v2(), INCEPTION, lambda: slim_inception.v2((75, 75, 3)), 75, background=True
    ),
    "inception_v3": Case(
        "slim_inception", inceptions.v3(), INCEPTION, lambda: slim_inception.v3((96, 96, 3)), 96, background=True
    ),
    "inception_v4": Case(
        "slim_inception", inceptions.v4(), INCEPTION, lambda: slim_inception.v4((96, 96, 3)), 96, background=True
    ),
    "inception_resnet_v2": Case(
        "slim_inception_resnet_v2",
        inceptions.resnet_v2(),
        INCEPTION,
        lambda: inception_resnet.v2((96, 96, 3)),
        96,
        background=True,
    ),
    "facenet": Case("facenet", inceptions.facenet(), INCEPTION, lambda: inception_resnet.facenet((96, 96, 3)), 96),
    "nasnet_mobile": Case(
        "slim_nasnet", others.nasnet(), Layers(), lambda: slim_nasnet.mobile((64, 64, 3)), 64, background=True
    ),
    "efficientnet-b0": Case(
        "efficientnet",
        others.efficientnet("b0", 1.0, 1.0),
        Layers(),
        lambda: efficientnet.b0((64, 64, 3)),
        64,
        averages=True,
    ),
    "efficientnet-b4": Case(
        "efficientnet",
        others.efficientnet("b4", 1.4, 1.8),
        Layers(),
        lambda: efficientnet.b4((64, 64, 3)),
        64,
        averages=True,
    ),
    "bit_r50x1": Case("bit_resnet", resnets.bit(50), Layers(), lambda: bit_resnet.r50x1((65, 65, 3)), 65),
    "vggish": Case("vggish", vggs.vggish, Layers(), vggish.build, (96, 64, 1)),
    "deeplab_mobilenet_v2": Case(
        "deeplab_mobilenet_v2",
        mobilenets.v2(output_stride=16, top=False),
        RELU6,
        lambda: deeplab.mobilenet_v2((65, 65, 3)),
        65,
    ),
    "deeplab_xception": Case(
        "deeplab_xception", others.xception(), Layers(), lambda: deeplab.xception_65((65, 65, 3)), 65
    ),
    "bert_base": Case("bert", transformers.bert(1000), Layers(), lambda: bert.build(1000), 0),
}
KERAS = {  # the networks of keras.applications that have numbers for names, which --auto cannot follow
    "inception_v3": Case(
        "slim_inception_v3_keras", inceptions.v3(), INCEPTION, application("InceptionV3", 96), 96, background=True
    ),
    "inception_resnet_v2": Case(
        "slim_inception_resnet_v2_keras",
        inceptions.resnet_v2(),
        INCEPTION,
        application("InceptionResNetV2", 96),
        96,
        background=True,
    ),
}
# the number of variables, and a digest of their names and shapes, as the published code makes them (without the auxiliary
# classifiers)
PUBLISHED = {
    "resnet_v1_50": "267 26c4bd34269266c4",
    "resnet_v2_50": "272 e6160d6db906f303",
    "vgg_16": "32 c48fa29fce838213",
    "inception_v1": "230 94bd8e05de92f5ea",
    "inception_v2": "277 3495a4a5fd6f7ac9",
    "inception_v3": "378 b6b45a020b99f2c9",
    "inception_resnet_v2": "898 b13a54e61ac2bbbb",
    "mobilenet_v3_large": "266 a17a38b70bee8b5e",
    "mobilenet_v3_small": "210 8e1d1f0837d5d41f",
    "inception_v4": "598 01cb4047fa8eb545",
    "mobilenet_v1": "137 e34c65e57b15694a",
    "nasnet_mobile": "1126 2c1b8486fd14f182",
    "resnet_v1_101": "522 dc22d1b0c7585314",
    "resnet_v2_101": "544 0869676a1af524a6",
    "resnet_v1_152": "777 0cc94415f5c7b8c1",
    "resnet_v2_152": "816 2e7ee1c17fe958ec",
    "vgg_19": "38 1af4d53be5ef33e8",
    "facenet": "490 2810eaea69598222",
    "mobilenet_v2": "262 221351f3a076cf82",
}
