"""Read weights: released `.pth` files and safetensors, with the official key names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..runtime.config import MARConfig
from ..runtime.errors import WeightsError
from .families import own_names
from .mar import MAR

_STATE_KEYS = ("model_ema", "model", "state_dict")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name, as float32, from safetensors or a `.pth` of released form.

    A `.pth` holds the tensors under `model_ema` (preferred), `model` or `state_dict`, or at its
    top level; it is loaded with `weights_only=True`.

    Raises:
        WeightsError: the file is missing or truncated, or holds no tensors or odd ones.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: give the path of a .pth or .safetensors file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are something else
            state = _load(path)
    except ImportError as error:
        raise WeightsError(
            "reading safetensors needs safetensors: pip install safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = _first_line(error)
        raise WeightsError(f"cannot read weights {path}: {reason}; fetch the file again") from error
    if isinstance(state, Mapping):
        for key in _STATE_KEYS:
            if isinstance(state.get(key), Mapping):
                state = state[key]
                break
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} holds no tensors: give a file with model_ema or model")
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: give a file with model_ema or model")
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
            raise WeightsError(
                f"{path}: {name} is complex, quantised or sparse: give the weights as plain floats"
            )
    return {name: tensor.float() for name, tensor in tensors.items()}


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `state` into `module`; every name and shape must fit.

    Raises:
        WeightsError: names the first tensor that is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise WeightsError(
                f"{path} lacks {name} {list(tensor.shape)}: is this the configuration of the model?"
            )
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} is {list(state[name].shape)}, the configuration asks for "
                f"{list(tensor.shape)}: give the configuration that the model was trained with"
            )
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise WeightsError(
            f"{path} has {extra[0]}, which the configuration does not: give the configuration "
            "that the model was trained with"
        )
    module.load_state_dict(dict(state))


def load_mar(path: str | Path, config: MARConfig) -> MAR:
    """Load a MAR model for inference (evaluation mode, float32, CPU).

    Args:
        path: `.pth` with `{"model_ema": ...}` or `{"model": ...}`, or `.safetensors`, with
            official keys.
        config: the architecture, and the family whose names the weights have.

    Raises:
        ConfigError: the configuration is of no family.
        WeightsError: the file cannot be read, or a tensor does not fit the configuration.
    """
    model = MAR(config)
    load_into(model, own_names(read_state_dict(path), config, path), path)
    return model.eval()
