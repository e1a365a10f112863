"""The runners torch and torch_compile: an equal ViT in PyTorch, in eager mode and compiled.

They import no TensorFlow, which would count as their memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .harness import Job


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Any) -> Any:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        return self.down(functional.gelu(self.up(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, approximate: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.mlp = Mlp(width, approximate)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images [B, height, width, channels] to logits [B, classes]; attributes are named as in the engine's ViT."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, side = config["width"], config["patch"]
        height, breadth, channels = config["image"]
        approximate = "tanh" if config["gelu"] == "tanh" else "none"
        self.side = side
        self.patch = nn.Linear(side * side * channels, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        tokens = (height // side) * (breadth // side) + 1
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(Block(width, config["heads"], approximate) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config["classes"])

    def forward(self, images: Any) -> Any:
        x = images.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side)).transpose(2, 3)
        x = self.patch(x.flatten(3).flatten(1, 2))
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def name_parameters(model: nn.Module) -> dict[str, Any]:
    """Maps the engine's variable paths to parameters."""
    found = {}
    for name, parameter in model.named_parameters():
        layer, _, last = name.replace(".", "/").rpartition("/")
        norm = layer.rpartition("/")[2].startswith("norm")
        names = {"weight": "gamma", "bias": "beta"} if norm else {"weight": "kernel"}
        found["/".join(filter(None, (layer, names.get(last, last))))] = parameter
    return found


class Torch:
    """Trains what has requires_grad; each step computes cross-entropy and accuracy and applies torch.optim.AdamW (fused).

    In mixed_bfloat16, the forward pass runs under torch.autocast, as PyTorch recommends.
    """

    def __init__(self, job: Job) -> None:
        self.half = job.precision == "mixed_bfloat16"
        self.model: Any = ViT(job.config)
        self.parameters = name_parameters(self.model)
        with torch.no_grad():
            for path, value in job.arrays():
                # Linear stores its kernel as [outputs, inputs]
                self.parameters[path].copy_(torch.from_numpy(value.T if path.endswith("kernel") else value))
        for path, parameter in self.parameters.items():
            parameter.requires_grad_(path in set(job.trained))
        decayed = [self.parameters[path] for path in job.trained if path in set(job.decayed)]
        rest = [self.parameters[path] for path in job.trained if path not in set(job.decayed)]
        settings = job.adamw
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
            lr=settings["learning_rate"],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["epsilon"],
            fused=True,
        )
        images, labels = job.batch()
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels).long()

    def train_step(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.model(self.images)
            loss = functional.cross_entropy(logits, self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        (logits.argmax(-1) == self.labels).float().mean().item()  # the accuracy, as the others compute it
        return float(loss.item())

    def facts(self) -> dict[str, Any]:
        slots = [slot for state in self.optimizer.state.values() for name, slot in state.items() if name != "step"]
        return {
            "library": f"PyTorch {torch.__version__}",
            "parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "trained_parameters": sum(p.numel() for p in self.parameters.values() if p.requires_grad),
            "slot_bytes": sum(slot.numel() * slot.element_size() for slot in slots),
        }


class TorchCompile(Torch):
    """The same step with torch.compile; its first call compiles the forward and the backward pass with a C++ compiler."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.model = torch.compile(self.model)
