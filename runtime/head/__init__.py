"""Samplers of the diffusion head."""

from .draft import AffineDraft, HeadCalibration, Trajectories, fit_affine_draft
from .parallel import ParallelSampler
from .request import Evaluate, HeadNoise, HeadReport, HeadRequest
from .sampler import HeadSampler
from .schedule import HeadSchedule
from .sequential import SequentialSampler
from .solver import SolverSampler, SolverSchedule
from .speculative import SpeculativeSampler

__all__ = [
    "AffineDraft",
    "Evaluate",
    "HeadCalibration",
    "HeadNoise",
    "HeadReport",
    "HeadRequest",
    "HeadSampler",
    "HeadSchedule",
    "ParallelSampler",
    "SequentialSampler",
    "SolverSampler",
    "SolverSchedule",
    "SpeculativeSampler",
    "Trajectories",
    "fit_affine_draft",
]
