"""Samplers of the diffusion head."""

from .draft import AffineDraft, Trajectories, fit_affine_draft
from .parallel import ParallelSampler
from .sampler import Evaluate, HeadNoise, HeadReport
from .schedule import HeadSchedule
from .sequential import SequentialSampler
from .speculative import SpeculativeSampler

__all__ = [
    "AffineDraft",
    "Evaluate",
    "HeadNoise",
    "HeadReport",
    "HeadSchedule",
    "ParallelSampler",
    "SequentialSampler",
    "SpeculativeSampler",
    "Trajectories",
    "fit_affine_draft",
]
