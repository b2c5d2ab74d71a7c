"""How much memory reading takes, in a process of its own: its highest resident set tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import MAR, MARConfig

from ...helpers import run_python

# 16 million parameters, 64 MiB, of which no tensor is large.
CONFIG = MARConfig(
    img_size=64, class_num=10, buffer_size=4, encoder_embed_dim=256, encoder_depth=10,
    encoder_num_heads=4, decoder_embed_dim=256, decoder_depth=10, decoder_num_heads=4, diffloss_d=1,
    diffloss_w=64,
)  # fmt: skip
MOST = 1.3

_READ = """
import sys, torch
from csd.models import MARConfig, load_mar
from csd.models.mar import MAR
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
import csd.models.checkpoint
import safetensors.torch
tiny = MARConfig(**{tiny})
torch.save(dict(model=MAR(tiny).state_dict()), sys.argv[1] + ".tiny")
load_mar(sys.argv[1] + ".tiny", tiny)  # what reading the first file imports
before = peak()
model = load_mar(sys.argv[1], MARConfig(**{config}))
total = sum(float(p.double().sum()) for p in model.parameters())
print(peak() - before, sum(p.nbytes for p in model.parameters()), total)
"""


@pytest.mark.skipif(
    not __import__("pathlib").Path("/proc/self/status").exists(), reason="the system has no /proc"
)
@pytest.mark.parametrize("form", ["training file", "half training file", "safetensors", "half"])
def test_reading_takes_little_more_memory_than_the_weights(form, tmp_path):
    rng = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=rng) for n, t in MAR(CONFIG).state_dict().items()}
    half = "half" in form
    state = {name: tensor.half() if half else tensor for name, tensor in state.items()}
    path = tmp_path / "weights"
    if "training" in form:
        other = {name: tensor + 1 for name, tensor in state.items()}
        moments = {i: {"exp_avg": t + 2, "exp_avg_sq": t + 3} for i, t in
                   enumerate(state.values())}  # fmt: skip
        torch.save({"model": other, "model_ema": state, "optimizer": {"state": moments}}, path)
        del other, moments
    else:
        save_file(state, path)
    wanted = sum(float(tensor.double().sum()) for tensor in state.values())
    code = _READ.replace("{config}", repr(CONFIG.to_dict())).replace(
        "{tiny}", repr({**CONFIG.to_dict(), "encoder_depth": 1, "decoder_depth": 1})
    )
    done = run_python(code, path)
    assert done.returncode == 0, done.stderr
    taken, kept, total = map(float, done.stdout.split())
    print(f"{form}: {taken / kept:.2f} times the {kept / 2**20:.0f} MiB kept, at most {MOST}")
    np.testing.assert_allclose(total, wanted)
    assert taken <= MOST * kept
