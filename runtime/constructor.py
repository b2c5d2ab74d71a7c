"""Arguments of the released MAR constructor and training script as values of a configuration.

Published models come with what made them: the constructor's arguments, or all of the training
script's (`vars(args)`), most of which say how a model was trained and nothing of what it is. Those
are left out by name. A name that is none of both is misspelt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from .command.text import plain, shown
from .errors import ConfigError

# Of the constructor, without effect on a trained model.
_TRAINING = {
    "mask_ratio_min", "label_drop_prob", "attn_dropout", "proj_dropout", "diffusion_batch_mul",
    "grad_checkpointing",
}  # fmt: skip
# Of the training script (`main_mar.py`), and what it adds where several processes train.
_SCRIPT = {
    "batch_size", "epochs", "vae_path", "num_iter", "num_images", "cfg", "cfg_schedule",
    "eval_freq", "save_last_freq", "online_eval", "evaluate", "eval_bsz", "weight_decay", "lr",
    "blr", "min_lr", "lr_schedule", "warmup_epochs", "ema_rate", "grad_clip", "temperature",
    "data_path", "output_dir", "log_dir", "device", "seed", "resume", "start_epoch", "num_workers",
    "pin_mem", "no_pin_mem", "world_size", "local_rank", "dist_on_itp", "dist_url", "use_cached",
    "cached_path", "rank", "gpu", "distributed", "dist_backend",
}  # fmt: skip
IGNORED = frozenset(_TRAINING | _SCRIPT)

_EPSILON = re.compile(r"eps\s*=\s*([0-9.eE+-]+)")
_TORCH_EPSILON = 1e-5  # of nn.LayerNorm, where nothing else is said


def configuration_values(
    values: Mapping[str, Any], fields: Collection[str], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the values of a configuration's fields.

    Args:
        values: arguments of the constructor, or of the training script.
        fields: that a configuration has.
        models: what each `model` of the training script stands for.

    Raises:
        ConfigError: a name is misspelt, two values contradict each other, or `model` or
            `norm_layer` is none that csd knows.
    """
    known = {*fields, *IGNORED, "model", "norm_layer"}
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ConfigError(_misspelt(str(unknown), fields, known))
    found = {name: value for name, value in values.items() if name in fields}
    if values.get("norm_layer") is not None:
        _merge(found, {"norm_eps": _epsilon(values["norm_layer"])}, "norm_layer")
    if "model" in values:
        name = values["model"]
        if not isinstance(name, str) or name not in models:
            raise ConfigError(f"model is {shown(name)}: give one of {', '.join(models)}")
        _merge(found, models[name], f"model {name}")
    return found


def _merge(found: dict[str, Any], said: Mapping[str, Any], by: str) -> None:
    for name, value in said.items():
        if found.setdefault(name, value) != value:
            raise ConfigError(
                f"{name} is {shown(found[name])}, and {by} has {value}: leave one out"
            )


def _misspelt(name: str, fields: Collection[str], known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    mean = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"unknown configuration key {shown(name, 40)}{mean}; known keys: "
        f"{plain(', '.join(sorted(fields)), 240)}"
    )


def _epsilon(layer: object) -> float:
    """The epsilon of a `norm_layer` as a text of JSON can give it."""
    if isinstance(layer, str) and "LayerNorm" in layer:
        found = _EPSILON.search(layer)
        try:
            return float(found[1]) if found else _TORCH_EPSILON
        except ValueError:
            pass
    raise ConfigError(f"norm_layer is {shown(layer)}: give LayerNorm, or norm_eps in place of it")
