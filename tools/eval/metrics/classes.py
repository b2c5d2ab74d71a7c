"""What a classifier makes of generated images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .halves import Estimate, Float, Masks


def accuracy(logits: Float, labels: NDArray[np.int64], masks: Masks) -> Estimate:
    """Share of images that are given the class that was asked for; logits `[N, classes]`."""
    right = (logits.argmax(axis=1) == labels).astype(np.float64)
    return Estimate(float(right.mean()), masks @ right / masks.sum(axis=1))


def inception_score(logits: Float, masks: Masks) -> Estimate:
    """`exp` of the mean divergence of an image's classes from all images', of one split.

    Salimans et al., arXiv 1606.03498: 1 where all images look alike, at most the number of classes.
    """
    high = logits - logits.max(axis=1, keepdims=True)
    log_p = high - np.log(np.exp(high).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    own = (p * log_p).sum(axis=1)

    def score(weights: Float) -> Float:
        share = weights / weights.sum(axis=1, keepdims=True)
        mean = share @ p
        entropy = -(mean * np.log(np.maximum(mean, 1e-300))).sum(axis=1)
        return np.exp(share @ own + entropy)

    return Estimate(float(score(np.ones((1, len(p))))[0]), score(masks.astype(np.float64)))
