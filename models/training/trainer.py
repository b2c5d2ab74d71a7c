"""Train a MAR model on images: seeded, resumable, on a CPU or a GPU.

Every random choice of a step is a pure function of (seed, step), so that a run which was
interrupted and resumed draws the batches, masks and noises of one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ...runtime.command.files import write_atomically
from ...runtime.config import MARConfig
from ...runtime.errors import CsdError
from ...runtime.schedule import TRAIN_STEPS
from ..mar import MAR, Backbone
from ..patches import patchify
from .loss import DiffusionLoss


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training run.

    `token_noise` is the standard deviation of the Gaussian noise added to each token: without it
    a constant background is a point mass, and densities over tokens degenerate.
    `head_repeats` is the number of (timestep, noise) draws per masked token and step.
    """

    steps: int
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 300
    gradient_clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    token_noise: float = 0.1
    head_repeats: int = 2
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass
class _State:
    model: MAR
    ema: MAR
    optimizer: torch.optim.Optimizer
    step: int
    seconds: float


def train(
    config: MARConfig,
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    *,
    checkpoint: Path,
    log: Path,
    device: torch.device,
    bf16: bool,
    save_every: int = 500,
    log_every: int = 100,
) -> MAR:
    """Train and return the averaged (EMA) model; resumes from `checkpoint` if it exists.

    Args:
        config: architecture.
        recipe: hyperparameters.
        images: latents `[N, c, h, w]` float32.
        labels: `[N]` int64.
        checkpoint: file to resume from and to save to, replaced atomically.
        log: JSON-lines file to append losses to.
        device: where to train.
        bf16: autocast to bfloat16.

    Raises:
        CsdError: the checkpoint belongs to another run, or the loss is not finite.
    """
    state = _start(config, recipe, device)
    if checkpoint.exists():
        _resume(state, checkpoint, config, recipe, device)
    loss_of = DiffusionLoss(config.beta_schedule, device)
    tokens = patchify(images, config.patch_size).to(device)
    labels = labels.to(device)
    began = time.perf_counter() - state.seconds
    sums = torch.zeros(3, dtype=torch.float64)
    with log.open("a", encoding="utf-8") as stream:
        while state.step < recipe.steps:
            mse, bound, norm = _train_step(state, recipe, loss_of, tokens, labels, bf16)
            sums += torch.tensor([mse, bound, norm], dtype=torch.float64)
            state.step += 1
            state.seconds = time.perf_counter() - began
            if not math.isfinite(mse + bound):
                raise CsdError(
                    f"the loss is not finite at step {state.step}: lower --learning-rate"
                )
            if state.step % log_every == 0:
                _log(stream, state, recipe, sums / log_every)
                sums.zero_()
            if state.step % save_every == 0 or state.step == recipe.steps:
                _save(state, checkpoint, config, recipe)
                error = first_step_error(state.ema)
                record = {"step": state.step, "first_step_error": round(error, 5)}
                stream.write(json.dumps(record) + "\n")
                print(f"step {state.step}: rms(eps - x) at the last t {error:.4f}", flush=True)
    return state.ema.eval()


def _start(config: MARConfig, recipe: Recipe, device: torch.device) -> _State:
    torch.manual_seed(recipe.seed)
    model = MAR(config)
    model.initialize()
    model.to(device)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.95),
    )  # fmt: skip
    return _State(model, copy.deepcopy(model).requires_grad_(False), optimizer, 0, 0.0)


def _train_step(
    state: _State,
    recipe: Recipe,
    loss_of: DiffusionLoss,
    tokens: Tensor,
    labels: Tensor,
    bf16: bool,
) -> tuple[float, float, float]:
    """Update model and average once; return `(mse, bound, gradient norm)`."""
    config, device = state.model.config, tokens.device
    rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + state.step)
    length, classes = config.seq_len, config.class_num

    chosen = torch.randint(len(tokens), (recipe.batch,), generator=rng).to(device)
    x0 = tokens[chosen]
    x0 = x0 + recipe.token_noise * torch.randn(x0.shape, generator=rng).to(device)
    dropped = (torch.rand(recipe.batch, generator=rng) < recipe.label_dropout).to(device)
    label = torch.where(dropped, classes, labels[chosen])

    # The share of masked tokens follows the cosine schedule that decoding runs through.
    ratio = math.cos(math.pi / 2 * float(torch.rand(1, generator=rng)))
    masked = max(1, min(length, math.ceil(length * ratio)))
    order = torch.rand(recipe.batch, length, generator=rng).argsort(dim=1).to(device)
    query, visible = order[:, :masked], order[:, masked:]

    rows = recipe.batch * masked * recipe.head_repeats
    t = torch.randint(TRAIN_STEPS, (rows,), generator=rng).to(device)
    noise = torch.randn(rows, config.token_dim, generator=rng).to(device)

    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        known = x0.gather(1, visible.unsqueeze(-1).expand(-1, -1, x0.shape[-1]))
        wanted = x0.gather(1, query.unsqueeze(-1).expand(-1, -1, x0.shape[-1]))
        z = Backbone.forward(state.model, known, visible, query, label)
        z = z.flatten(0, 1).repeat(recipe.head_repeats, 1)
        target = wanted.flatten(0, 1).repeat(recipe.head_repeats, 1)
        x_t = loss_of.noised(target, t, noise)
        eps, v = state.model.head(x_t, t, z)
    mse, bound = loss_of(eps, v, target, x_t, t, noise)
    state.optimizer.zero_grad(set_to_none=True)
    (mse + bound).backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.gradient_clip)
    state.optimizer.step()
    # A short memory at first, so that the average does not remember the initial parameters.
    decay = min(recipe.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for average, current in zip(state.ema.parameters(), state.model.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
    return mse.item(), bound.item(), norm.item()


def first_step_error(model: MAR, images: int = 32, seed: int = 0) -> float:
    """Return rms(eps - x) at the last training timestep, where x is nearly all noise.

    A cosine schedule multiplies this error by about 350 in the first mean of 100 head steps, so it
    asks for about 1e-3; a linear one asks for little (section 3 of the design).

    Args:
        model: what to measure.
        images: random classes, all tokens unknown.
        seed: of classes and x.
    """
    config, device = model.config, model.mask_token.device
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(config.class_num, (images,), generator=rng).to(device)
    shape = (images, config.seq_len, config.token_dim)
    x = torch.randn(images * config.seq_len, config.token_dim, generator=rng).to(device)
    with torch.inference_mode():
        unknown = torch.ones(images, config.seq_len, device=device)
        z = model.condition(torch.zeros(shape, device=device), unknown, labels)
        t = torch.full((len(x),), TRAIN_STEPS - 1, device=device)
        eps, _ = model.head(x, t, z.flatten(0, 1))
    return float((eps - x).square().mean().sqrt())


def _log(stream: TextIO, state: _State, recipe: Recipe, means: Tensor) -> None:
    mse, bound, norm = means.tolist()
    record = {
        "step": state.step,
        "eps_mse": round(mse, 5),
        "bound_bits": round(bound, 5),
        "gradient_norm": round(norm, 4),
        "learning_rate": recipe.rate(state.step - 1),
        "seconds": round(state.seconds, 1),
    }
    stream.write(json.dumps(record) + "\n")
    stream.flush()
    print(
        f"step {state.step}/{recipe.steps}  eps mse {mse:.4f}  bound {bound:.4f} bits  "
        f"{state.seconds:.0f} s",
        flush=True,
    )


def _save(state: _State, path: Path, config: MARConfig, recipe: Recipe) -> None:
    content = {
        "config": config.to_dict(),
        "recipe": dataclasses.asdict(recipe),
        "step": state.step,
        "seconds": state.seconds,
        "model": state.model.state_dict(),
        "model_ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    with write_atomically(path) as stream:
        torch.save(content, stream)


def _resume(
    state: _State, path: Path, config: MARConfig, recipe: Recipe, device: torch.device
) -> None:
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CsdError(
            f"cannot read the checkpoint {path} ({reason}): delete it to start over"
        ) from error
    for name, wanted in (("config", config.to_dict()), ("recipe", dataclasses.asdict(recipe))):
        found = content[name]
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed:
            raise CsdError(
                f"{path} was trained with {changed[0]} = {found.get(changed[0])}, not "
                f"{wanted[changed[0]]}: give the same value, or another --out"
            )
    state.model.load_state_dict(content["model"])
    state.ema.load_state_dict(content["model_ema"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.seconds = content["step"], content["seconds"]
    print(f"resumed from {path} at step {state.step}", flush=True)
