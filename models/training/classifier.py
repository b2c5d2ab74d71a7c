"""A small classifier of framed images, whose features measure how far sets of images lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...runtime.command.files import write_atomically
from ...runtime.errors import NumericsError
from ..checkpoint import load_into, read_state_dict


class Classifier(nn.Module):
    """Images `[N, 1, 32, 32]` in [-1, 1] -> logits `[N, classes]` and features `[N, 64]`."""

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
        self.convolutions = nn.Sequential(*layers)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 64), nn.ReLU())
        self.output = nn.Sequential(nn.Dropout(0.25), nn.Linear(64, classes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 1, 32, 32]` -> `[N, classes]`, `[N, 64]`."""
        features = self.features(self.convolutions(images))
        return self.output(features), features

    def activations(self, images: Tensor) -> list[Tensor]:
        """What each convolution gives, before it is pooled: `[N, c, 32, 32]`, 16, 8."""
        found: list[Tensor] = []
        for layer in self.convolutions:
            if isinstance(layer, nn.MaxPool2d):
                found.append(images)
            images = layer(images)
        return found


def train_classifier(images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> Classifier:
    """Train on `images [N, 1, 32, 32]` with a black frame, moved by up to two pixels."""
    torch.manual_seed(seed)
    model = Classifier()
    batch = min(256, len(images))
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    order = torch.randperm(len(images))
    for step in range(steps):
        if step > 0 and step % (len(images) // batch) == 0:
            order = torch.randperm(len(images))
        chosen = order[(step * batch) % (len(images) // batch * batch) :][:batch]
        # What leaves the frame on one side comes back on the other, black.
        down, right = torch.randint(-2, 3, (2,)).tolist()
        logits, _ = model(images[chosen].roll((down, right), dims=(2, 3)))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"classifier step {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    return model.eval()


def classify(model: Classifier, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return classes `[N]` and features `[N, 64]` of `images [N, 1, 32, 32]`.

    Raises:
        NumericsError: an image or the classifier is not finite; the largest of such logits, and
            the distance of such features, would tell nothing.
    """
    with torch.inference_mode():
        parts = [model(part) for part in images.split(1000)]
    logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
    if not (logits.isfinite().all() and features.isfinite().all()):
        raise NumericsError(
            "the classifier returned values that are not finite: check the weights of the model "
            "whose images it was given"
        )
    return logits.argmax(dim=1).numpy(), features.numpy()


def load_classifier(path: Path) -> Classifier:
    """Read the classifier that the training command wrote.

    Raises:
        WeightsError: it cannot be read.
    """
    model = Classifier()
    load_into(model, read_state_dict(path), path)
    return model.eval()


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images [N, 1, 32, 32]` that are given their label."""
    return float((classify(model, images)[0] == labels.numpy()).mean())


def export_classifier(model: Classifier, path: Path) -> None:
    """Write ONNX: `image [N, 1, 32, 32]` -> `logits [N, classes]`, `features [N, 64]`."""
    batch = torch.export.Dim("N", min=1, max=65536)
    program = torch.onnx.export(
        model, (torch.zeros(2, 1, 32, 32),), dynamo=True, opset_version=18, verbose=False,
        input_names=["image"], output_names=["logits", "features"],
        dynamic_shapes=({0: batch},),
    )  # fmt: skip
    assert program is not None
    with write_atomically(path) as stream:
        stream.write(program.model_proto.SerializeToString())
