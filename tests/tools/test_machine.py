from __future__ import annotations

import json

from csd.tools.machine import describe_machine, gpu_state


def test_the_state_of_the_gpu_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 580.1, 1980 MHz, 2619 MHz'\n", encoding="utf-8")
    tool.chmod(0o755)
    state = gpu_state()
    assert (state["name"], state["clocks.sm"]) == ("NVIDIA X", "1980 MHz")
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert gpu_state() is None


def test_the_machine_is_described_in_json_values():
    described = json.loads(json.dumps(describe_machine()))
    assert {"processor", "cores", "system", "python", "libraries", "date"} <= set(described)
    assert {"csd", "numpy", "onnxruntime", "torch"} <= set(described["libraries"])
