"""The loop that trains any of the models: seeded, resumable, of a length that may be decided late.

A step's work is a function of (model, step) alone, so a run which was interrupted and resumed does
what one that was not does.

Two files hold a run. The checkpoint is a state before the decay of the learning rate: nothing in
it depends on how long the run will be, so a later sitting goes on from it, however many steps it
asks for. The decay has a checkpoint of its own, `.decay`, and leaves the first one as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...runtime.errors import CsdError
from .checkpoints import read_checkpoint, refuse_other_run, save_checkpoint
from .rate import warmup_stable_decay

Model = TypeVar("Model", bound=nn.Module)
Settings = Mapping[str, Mapping[str, Any]]

_LENGTH = ("steps", "decay_steps")  # the values of a recipe that a stable state does not know


@dataclass(frozen=True)
class RunRecipe:
    """Hyperparameters that all runs have.

    `decay_steps` is how many of the `steps` the learning rate falls for; `ema` is the decay of the
    average of weights.
    """

    steps: int
    decay_steps: int = 0
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 300
    gradient_clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return self.steps - self.decay_steps

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * warmup_stable_decay(
            step, warmup=self.warmup, decay_start=self.decay_start, decay_steps=self.decay_steps
        )

    def generator(self, step: int) -> torch.Generator:
        """The source of all random choices of a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


@dataclass(frozen=True)
class RunFiles:
    """Where a run is kept: `checkpoint`, replaced atomically, and the JSON lines of `log`."""

    checkpoint: Path
    log: Path

    @property
    def decaying(self) -> Path:
        """The checkpoint of the decay."""
        return self.checkpoint.with_name(self.checkpoint.name + ".decay")


def run_files(folder: Path, what: str) -> RunFiles:
    """Return the files of the model `what` in `folder`."""
    return RunFiles(folder / f"{what}.checkpoint", folder / f"{what}.log.jsonl")


@dataclass
class TrainingState(Generic[Model]):
    """A model in training, the average of its weights, and how far it is."""

    model: Model
    ema: Model
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @staticmethod
    def start(model: Model, optimizer: torch.optim.Optimizer) -> TrainingState[Model]:
        """A run that has done nothing yet."""
        return TrainingState(model, copy.deepcopy(model).requires_grad_(False), optimizer)

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "model_ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go back to what `content` returned."""
        self.model.load_state_dict(content["model"])
        self.ema.load_state_dict(content["model_ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]


def run_steps(
    state: TrainingState[Model],
    recipe: RunRecipe,
    settings: Settings,
    losses: Callable[[int], Mapping[str, Tensor]],
    files: RunFiles,
    *,
    examine: Callable[[Model], Mapping[str, float]] | None = None,
    save_every: int,
    log_every: int,
) -> Model:
    """Train until `recipe.steps` and return the average; resumes from the run's checkpoint.

    Args:
        state: a run that has done nothing yet.
        recipe: hyperparameters.
        settings: all that makes this run what it is, the recipe among it, by name and value;
            a checkpoint with other ones is refused.
        losses: from the step to scalars that are logged by name; `loss` is what is minimised.
        files: where the run is kept.
        examine: figures of the average to log with every checkpoint.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        CsdError: the checkpoint belongs to another run or lies past the start of the decay, or
            the loss is not finite.
    """
    _resume(state, recipe, settings, files)
    began = time.perf_counter() - state.seconds
    sums: dict[str, float] = {}
    with files.log.open("a", encoding="utf-8") as stream:

        def write(record: Mapping[str, float]) -> None:
            line = json.dumps(record)
            stream.write(line + "\n")
            stream.flush()
            print(line, flush=True)

        while state.step < recipe.steps:
            found = losses(state.step)
            norm = _update(state, recipe, found["loss"])
            state.step += 1
            state.seconds = time.perf_counter() - began
            figures = {name: value.item() for name, value in found.items()}
            if not math.isfinite(figures["loss"]):
                raise CsdError(
                    f"the loss is not finite at step {state.step}: lower --learning-rate"
                )
            for name, value in {**figures, "gradient_norm": norm}.items():
                sums[name] = sums.get(name, 0.0) + value
            if state.step % log_every == 0:
                means = {name: float(f"{total / log_every:.5g}") for name, total in sums.items()}
                sums.clear()
                rate, seconds = recipe.rate(state.step - 1), round(state.seconds, 1)
                write({"step": state.step, **means, "learning_rate": rate, "seconds": seconds})
            if state.step % save_every == 0 or state.step in (recipe.decay_start, recipe.steps):
                stable = state.step <= recipe.decay_start
                path = files.checkpoint if stable else files.decaying
                save_checkpoint({**settings, **state.content()}, path)
                if examine is not None:
                    write({"step": state.step, **examine(state.ema)})
    return state.ema.eval()


def _update(state: TrainingState[Model], recipe: RunRecipe, loss: Tensor) -> float:
    """Take an optimiser's step, move the average; return the norm of the gradient."""
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.gradient_clip)
    state.optimizer.step()
    # A short memory at first, so that the average does not remember the initial parameters.
    decay = min(recipe.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for average, current in zip(state.ema.parameters(), state.model.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
    return norm.item()


def _resume(
    state: TrainingState[Model], recipe: RunRecipe, settings: Settings, files: RunFiles
) -> None:
    """Go on with the decay if there is one of this length, else with the stable state."""
    device = next(state.model.parameters()).device
    length = {name: getattr(recipe, name) for name in _LENGTH}
    for path, of_this_length in ((files.decaying, True), (files.checkpoint, False)):
        if not path.exists():
            continue
        content = read_checkpoint(path, device)
        if of_this_length and any(content["recipe"].get(n) != v for n, v in length.items()):
            continue
        for name, values in settings.items():
            wanted = {key: value for key, value in values.items() if key not in length}
            refuse_other_run(path, content.get(name, {}), wanted)
        if not of_this_length and content["step"] > recipe.decay_start:
            least = content["step"] + recipe.decay_steps
            raise CsdError(
                f"{path} is at step {content['step']}, and the rate would fall from step "
                f"{recipe.decay_start}: give --steps {least} or more"
            )
        state.restore(content)
        print(f"resumed from {path} at step {state.step}", flush=True)
        return


def settings_of(recipe: RunRecipe, **others: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what `run_steps` asks for: the values of a recipe, and others by name."""
    return {"recipe": dataclasses.asdict(recipe), **others}
