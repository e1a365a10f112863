"""Networks in PyTorch under the names of timm, torchvision and transformers, for a process that has torch.

Written from the papers and from lists of state_dict names. The layers pad as TensorFlow does, and ResNet strides as Keras'.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_ADDED = 1.001e-5  # the epsilon of norms in Keras' ResNets


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME."""

    def forward(self, x: Any) -> Any:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            whole = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [whole // 2, whole - whole // 2]
        return self._conv_forward(functional.pad(x, pads), self.weight, self.bias)


def conv(before: int, after: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False) -> Any:
    return SameConv(before, after, kernel, stride, groups=groups, bias=bias)


class Bottleneck(nn.Module):
    """torchvision's names; the stride is in the first convolution."""

    def __init__(self, before: int, width: int, stride: int, *, first: bool, epsilon: float = _ADDED) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width, epsilon)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, epsilon)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width, epsilon)
        if first:
            shortcut = nn.Conv2d(before, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width, epsilon))

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    def __init__(
        self, units: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000, epsilon: float = _ADDED
    ):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width, epsilon)
        before = width
        for number, count in enumerate(units, 1):
            inner, blocks = width << (number - 1), []
            for unit in range(count):
                stride = 2 if unit == 0 and number > 1 else 1
                blocks.append(Bottleneck(before, inner, stride, first=unit == 0, epsilon=epsilon))
                before = 4 * inner
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.stages, self.fc = len(units), nn.Linear(before, classes)

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


class HFConv(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, *, active: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.normalization, self.active = nn.BatchNorm2d(after), active

    def forward(self, x: Any) -> Any:
        x = self.normalization(self.convolution(x))
        return torch.relu(x) if self.active else x


class HFLayer(nn.Module):
    def __init__(self, before: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.shortcut = HFConv(before, 4 * width, 1, stride, active=False) if first else nn.Identity()
        self.layer = nn.Sequential(
            HFConv(before, width, 1, stride), HFConv(width, width, 3), HFConv(width, 4 * width, 1, active=False)
        )

    def forward(self, x: Any) -> Any:
        return torch.relu(self.layer(x) + self.shortcut(x))


class HFResNet(nn.Module):
    """transformers' ResNetForImageClassification with downsample_in_bottleneck=true."""

    def __init__(self, units: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        before, stages = width, []
        for number, count in enumerate(units):
            layers = []
            for unit in range(count):
                stride = 2 if unit == 0 and number > 0 else 1
                layers.append(HFLayer(before, width << number, stride, first=unit == 0))
                before = 4 * (width << number)
            stages.append(nn.ModuleDict({"layers": nn.Sequential(*layers)}))
        embedder = nn.ModuleDict({"embedder": HFConv(3, width, 7, 2)})
        self.resnet = nn.ModuleDict({"embedder": embedder, "encoder": nn.ModuleDict({"stages": nn.ModuleList(stages)})})
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(before, classes))

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(self.resnet["embedder"]["embedder"](x), 3, 2, 1)
        for stage in self.resnet["encoder"]["stages"]:
            x = stage["layers"](x)
        return self.classifier(x.mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = conv(width, inner, bias=True), conv(inner, width, bias=True)

    def forward(self, x: Any) -> Any:
        y = functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv_expand(y))


class Inverted(nn.Module):
    """timm's DepthwiseSeparableConv where nothing expands, else its InvertedResidual."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int, *, squeeze: bool) -> None:
        super().__init__()
        width, plain = before * expansion, expansion == 1
        layers: OrderedDict[str, Any] = OrderedDict()
        if not plain:
            layers |= {"conv_pw": conv(before, width), "bn1": nn.BatchNorm2d(width, 1e-3)}
        layers["conv_dw"] = conv(width, width, kernel, stride, groups=width)
        layers["bn1" if plain else "bn2"] = nn.BatchNorm2d(width, 1e-3)
        if squeeze:
            layers["se"] = Squeeze(width, max(1, before // 4))
        layers["conv_pw" if plain else "conv_pwl"] = conv(width, after)
        layers["bn2" if plain else "bn3"] = nn.BatchNorm2d(after, 1e-3)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.order, self.adds = tuple(layers), before == after and stride == 1
        self.active = functional.silu if squeeze else functional.relu6

    def forward(self, x: Any) -> Any:
        y = x
        for name in self.order:
            y = getattr(self, name)(y)
            y = self.active(y) if name.startswith("bn") and name != self.order[-1] else y
        return x + y if self.adds else y


class Mobile(nn.Module):
    """timm's EfficientNet class: stages of (expansion, filters, blocks, stride, kernel)."""

    def __init__(self, stages: Any, *, stem: int, last: int, classes: int, squeeze: bool) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, stem, 3, 2), nn.BatchNorm2d(stem, 1e-3)
        before, made = stem, []
        for expansion, filters, count, first, kernel in stages:
            blocks = []
            for unit in range(count):
                stride = 1 if unit else first
                blocks.append(Inverted(before, filters, kernel, stride, expansion, squeeze=squeeze))
                before = filters
            made.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*made)
        self.conv_head, self.bn2 = conv(before, last), nn.BatchNorm2d(last, 1e-3)
        self.classifier = nn.Linear(last, classes)
        self.active = functional.silu if squeeze else functional.relu6

    def forward(self, x: Any) -> Any:
        x = self.blocks(self.active(self.bn1(self.conv_stem(x))))
        return self.classifier(self.active(self.bn2(self.conv_head(x))).mean((2, 3)))


MOBILENET = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3))  # fmt: skip
EFFICIENT = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))  # fmt: skip


def resnet50() -> Any:
    return ResNet(classes=10)


def resnet50_hf() -> Any:
    return HFResNet((3, 4, 6, 3), 64, 10)


def small_resnet() -> Any:
    return ResNet((1, 2), 4, 3)


def wrong_resnet() -> Any:
    """As torchvision's: the stride is in the second convolution."""
    network = small_resnet()
    network.layer2[0].conv1.stride, network.layer2[0].conv2.stride = (1, 1), (2, 2)
    return network


def other_names() -> Any:
    return nn.Sequential(nn.Linear(2, 2))


def mobilenetv2() -> Any:
    return Mobile(MOBILENET, stem=32, last=1280, classes=10, squeeze=False)


def efficientnet() -> Any:
    return Mobile(EFFICIENT, stem=32, last=1280, classes=10, squeeze=True)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = conv(3, 4, 3, bias=True), nn.BatchNorm2d(4, 1e-3), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
