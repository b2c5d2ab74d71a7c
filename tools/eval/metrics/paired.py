"""How far two images of one seed and number lie apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .halves import Float

Images = NDArray[np.uint8]

# Of SSIM (Wang et al., IEEE Transactions on Image Processing 13, 2004): an 11 x 11 Gaussian window
# with standard deviation 1.5, and constants for values from 0 to 255.
WINDOW, DEVIATION = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: Images, b: Images) -> Float:
    """Peak signal to noise of each pair in dB, `[N]`; infinite where both are the same.

    Args:
        a: images `[N, H, W, 3]`.
        b: likewise.
    """
    error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def ssim(a: Images, b: Images) -> Float:
    """Structural similarity of each pair, the mean over pixels and channels, `[N]`.

    Images are mirrored at their edges, so that every pixel has a window; windows of images that are
    smaller than one are the largest odd number of pixels that fits.
    """
    size = min(WINDOW, a.shape[1], a.shape[2])
    kernel = _window(size if size % 2 else size - 1)
    around = len(kernel) // 2
    edges = ((0, 0), (around, around), (around, around), (0, 0))
    x, y = (np.pad(v.astype(np.float64), edges, mode="reflect") for v in (a, b))
    mean_x, mean_y = _filtered(x, kernel), _filtered(y, kernel)
    var_x = _filtered(x * x, kernel) - mean_x**2
    var_y = _filtered(y * y, kernel) - mean_y**2
    both = _filtered(x * y, kernel) - mean_x * mean_y
    near = (2 * mean_x * mean_y + C1) * (2 * both + C2)
    far = (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    return (near / far).mean(axis=(1, 2, 3))


def feature_distance(x: Float, y: Float) -> Float:
    """Euclidean distance of each pair's features, `[N]`."""
    return np.sqrt(np.square(x - y).sum(axis=1))


def _window(size: int) -> Float:
    offsets = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * DEVIATION**2))
    return weights / weights.sum()


def _filtered(images: Float, kernel: Float) -> Float:
    """Windowed means down and across, of `[N, H, W, 3]`."""
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(images, len(kernel), axis=axis)
        images = windows @ kernel
    return images
