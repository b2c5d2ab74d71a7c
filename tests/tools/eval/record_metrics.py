"""Record what other implementations give: `python -m tests.tools.eval.record_metrics`.

Needs torchmetrics and prdc, which nothing else of this project does: an environment of their own
(`pip install torch torchmetrics prdc scikit-learn`), from the root of a checkout. The extractor
that torchmetrics is given passes on what it gets, so no Inception and no torchvision is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prdc
import torch
import torchmetrics
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

OUT = Path(__file__).resolve().parents[2] / "data" / "metrics.npz"
COUNT, WIDTH, CLASSES = 90, 12, 10


class PassedOn(nn.Module):
    """Features as they are given, in place of images."""

    num_features = WIDTH

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def main() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(WIDTH, WIDTH))
    y = np.maximum(rng.normal(size=(COUNT, WIDTH)) @ mixing, 0)
    x = np.maximum(rng.normal(size=(COUNT, WIDTH)) @ mixing * 0.9 + 0.2, 0)
    logits = 3 * rng.normal(size=(COUNT, CLASSES))
    a = rng.integers(0, 256, (4, 24, 20, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    ours, theirs = torch.from_numpy(x), torch.from_numpy(y)
    made, wanted = (torch.from_numpy(v.transpose(0, 3, 1, 2).astype(np.float64)) for v in (a, b))

    kernel = KernelInceptionDistance(feature=PassedOn(), subsets=1, subset_size=COUNT)
    frechet = FrechetInceptionDistance(feature=PassedOn()).set_dtype(torch.float64)
    for metric in (kernel, frechet):
        metric.update(theirs, real=True)
        metric.update(ours, real=False)
    inception = InceptionScore(feature=PassedOn(), splits=1)
    inception.update(torch.from_numpy(logits))
    ratio = PeakSignalNoiseRatio(data_range=255.0, reduction="none", dim=(1, 2, 3))
    near = {k: prdc.compute_prdc(real_features=y, fake_features=x, nearest_k=k) for k in (3, 5)}
    np.savez_compressed(
        OUT, x=x, y=y, logits=logits, a=a, b=b,
        kernel=float(kernel.compute()[0]), frechet=float(frechet.compute()),
        inception=float(inception.compute()[0]),
        psnr=ratio(made, wanted).numpy(),
        ssim=structural_similarity_index_measure(
            made, wanted, data_range=255.0, reduction="none"
        ).numpy(),
        precision=near[3]["precision"], recall=near[3]["recall"],
        density=near[5]["density"], coverage=near[5]["coverage"],
        recorded_with=f"torchmetrics {torchmetrics.__version__}, prdc 0.2, torch "
        f"{torch.__version__}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
