"""How much memory reading takes, in a process of its own: its highest resident set tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import MAR, MARConfig

from ...helpers import run_python

# 15 million parameters in few tensors: opening one makes a page of it resident.
CONFIG = MARConfig(
    img_size=64, class_num=10, buffer_size=4, encoder_embed_dim=768, encoder_depth=1,
    encoder_num_heads=4, decoder_embed_dim=768, decoder_depth=1, decoder_num_heads=4, diffloss_d=1,
    diffloss_w=64,
)  # fmt: skip
MOST = 1.3
FORMS = ("training file", "half training file", "safetensors", "half safetensors")

_READ = """
import json, sys
from pathlib import Path
from csd.models import MARConfig, load_mar

folder, config, tiny = Path(sys.argv[1]), *(MARConfig(**c) for c in json.loads(sys.argv[2]))
for name in ("tiny.pth", "tiny.safetensors"):  # what reading the first file imports
    load_mar(folder / name, tiny)

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024

for form in sys.argv[3:]:
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    before = resident("VmRSS")
    model = load_mar(folder / form, config)
    arrays = [p.detach().numpy() for p in model.parameters()]
    total = sum(float(array.sum(dtype="float64")) for array in arrays)
    print(resident("VmHWM") - before, sum(array.nbytes for array in arrays), total)
    del model, arrays
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system has no /proc")
def test_reading_takes_little_more_memory_than_the_weights(tmp_path):
    rng = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(t.shape, generator=rng) for n, t in MAR(CONFIG).state_dict().items()}
    wanted: list[float] = []
    for form in FORMS:
        state = {n: tensor.half() if "half" in form else tensor for n, tensor in drawn.items()}
        wanted.append(sum(float(t.sum(dtype=torch.float64)) for t in state.values()))
        if "training" in form:
            other = {name: tensor + 1 for name, tensor in state.items()}
            moments = {i: {"exp_avg": t, "exp_avg_sq": t + 2} for i, t in enumerate(other.values())}
            content = {"model": other, "model_ema": state, "optimizer": {"state": moments}}
            torch.save(content, tmp_path / form)
            del other, moments, content
        else:
            save_file(state, tmp_path / form)
    tiny = MARConfig(**{**CONFIG.to_dict(), "encoder_embed_dim": 8, "decoder_embed_dim": 8})
    torch.save(MAR(tiny).half().state_dict(), tmp_path / "tiny.pth")
    save_file(MAR(tiny).half().state_dict(), tmp_path / "tiny.safetensors")
    configs = json.dumps([CONFIG.to_dict(), tiny.to_dict()])
    done = run_python(_READ, tmp_path, configs, *FORMS)
    assert done.returncode == 0, done.stderr
    for form, total, line in zip(FORMS, wanted, done.stdout.splitlines(), strict=True):
        taken, kept, found = map(float, line.split())
        print(f"{form}: {taken / kept:.2f} times the {kept / 2**20:.0f} MiB kept, at most {MOST}")
        np.testing.assert_allclose(found, total, atol=1e-3)
        assert 0 < taken <= MOST * kept
