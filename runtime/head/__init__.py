"""Samplers of the diffusion head."""

from .sampler import Evaluate, HeadReport, SequentialSampler
from .schedule import HeadSchedule

__all__ = ["Evaluate", "HeadReport", "HeadSchedule", "SequentialSampler"]
