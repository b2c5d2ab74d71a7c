"""The tests marked `gpu`, and the kernels' once more under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ...runtime.command.text import listed
from .part import Outcome, Skipped, device_or_skip

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "tests/plugins/test_kernels.py"
# A test of compute-sanitizer exits with this where it found something.
SANITIZER_EXIT = 86


def check(out: Path, kernels: Path) -> Outcome:
    """Run them; reports are written to `out`.

    Args:
        out: folder of the reports.
        kernels: folder of the kernels for this device, if they were built.

    Raises:
        Skipped: there is no device, no checkout, or no pytest.
    """
    device_or_skip()
    if not (ROOT / KERNELS).is_file():
        raise Skipped("the tests are not installed: run this from a checkout of the repository")
    details = {"gpu": _pytest(out / "tests-gpu.xml", [], kernels)}
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        details["sanitizer"] = {"skipped": "compute-sanitizer is not found: it comes with CUDA"}
    else:
        wrapped = [tool, "--error-exitcode", str(SANITIZER_EXIT), "--target-processes", "all"]
        details["sanitizer"] = _pytest(out / "tests-sanitizer.xml", wrapped, kernels, KERNELS)
    failed = [name for name, run in details.items() if run.get("exit_code")]
    if failed:
        return Outcome("failed", f"{listed(failed)}: see {out}/tests-*.xml", details)
    return Outcome("passed", "", details)


def _pytest(report: Path, wrapped: list[str], kernels: Path, *paths: str) -> dict[str, Any]:
    command = [
        *wrapped, sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
        f"--junitxml={report.resolve()}", *paths,
    ]  # fmt: skip
    environment = dict(os.environ)
    if kernels.is_dir():
        environment["CSD_KERNELS"] = str(kernels.resolve())
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    result: dict[str, Any] = {"exit_code": done.returncode}
    if "No module named pytest" in done.stderr:
        return {"skipped": "pytest is not installed: pip install pytest"}
    if report.is_file():
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        for name in ("tests", "failures", "errors", "skipped"):
            result[name] = 0
        for suite in suites:
            for name in ("tests", "failures", "errors", "skipped"):
                result[name] += int(suite.get(name, 0))
    if done.returncode:
        result["output"] = (done.stdout + done.stderr).splitlines()[-60:]
    return result
