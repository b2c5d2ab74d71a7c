"""A short run of a bundle, in a process of its own (`child.py`), with its time and its peak."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

from ..machine.system import System

AR_STEPS = 4


def main(arguments: dict[str, Any]) -> None:
    """Generate one image and print a line of JSON.

    Args:
        arguments: `bundle`, `backend` and `threads`.
    """
    from ....runtime.errors import CsdError

    try:
        found = run_trial(arguments["bundle"], arguments["backend"], arguments["threads"])
    except CsdError as error:
        found = {"error": str(error)}
    print(json.dumps(found), flush=True)


def run_trial(folder: str, backend: str, threads: int) -> dict[str, Any]:
    """Generate one image of few AR steps.

    Returns:
        `seconds` of opening and of the image, `ar_steps`, and `peak_bytes`: resident memory of
        this process at most.

    Raises:
        CsdError: it cannot be done here.
    """
    import numpy as np

    from ....runtime import Bundle, GenerateOptions
    from ....runtime.errors import NumericsError

    began = time.perf_counter()
    bundle = Bundle.open(folder, verify_files="never")  # all were compared just now
    steps = min(AR_STEPS, bundle.manifest.target.seq_len)
    with bundle.session(backend, threads) as session:
        opened = time.perf_counter()
        result = session.generate([0], GenerateOptions(num_iter=steps), seed=0)
    if not np.isfinite(result.latents).all():
        raise NumericsError("the image has values that are not finite: export the bundle again")
    return {
        "open_seconds": opened - began,
        "seconds": time.perf_counter() - opened,
        "ar_steps": steps,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Resident memory of this process at most; where the system counts by process, of it alone."""
    # What the other counter tells begins with the peak of the process that started this one.
    status = System().fields("/proc/self/status").get("VmHWM", "").split()
    if len(status) == 2 and status[0].isdecimal():
        return int(status[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
