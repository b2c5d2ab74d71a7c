"""A small classifier that recognises the class of generated images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.command.files import write_atomically


class Classifier(nn.Module):
    """Convolutional classifier: images `[N, 1, 28, 28]` in [-1, 1] -> logits `[N, classes]`."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 24), (24, 48), (48, 96)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.output = nn.Sequential(nn.Flatten(), nn.Dropout(0.25), nn.Linear(96 * 9, classes))

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 1, 28, 28]` -> `[N, classes]`."""
        return self.output(self.features(images))


def train_classifier(
    images: Tensor, labels: Tensor, *, epochs: int, token_noise: float, seed: int
) -> Classifier:
    """Train on `images [N, 1, 28, 28]`, `labels [N]`, with the noise that generated tokens have."""
    torch.manual_seed(seed)
    model = Classifier()
    batch = 256
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    order = torch.randperm(len(images))
    for step in range(steps):
        if step > 0 and step % (len(images) // batch) == 0:
            order = torch.randperm(len(images))
        chosen = order[(step * batch) % (len(images) // batch * batch) :][:batch]
        x = images[chosen] + token_noise * torch.rand(len(chosen), 1, 1, 1) * torch.randn(
            len(chosen), *images.shape[1:]
        )
        loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"classifier step {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images [N, 1, 28, 28]` that are given their label."""
    with torch.inference_mode():
        hits = sum(
            int((model(x).argmax(dim=1) == y).sum())
            for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        )
    return hits / len(images)


def export_classifier(model: Classifier, path: Path) -> None:
    """Write the classifier as ONNX: `image [N, 1, 28, 28]` -> `logits [N, classes]`."""
    batch = torch.export.Dim("N", min=1, max=65536)
    program = torch.onnx.export(
        model, (torch.zeros(2, 1, 28, 28),), dynamo=True, opset_version=18, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    assert program is not None
    with write_atomically(path) as stream:
        stream.write(program.model_proto.SerializeToString())
