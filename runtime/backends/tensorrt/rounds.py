"""The speculative head sampler with its chains on the device: three numbers a round cross.

A round is a kernel that drafts, the engine of `head_step` on the rows that it wrote, and a kernel
that walks (`csd.plugins.rounds`); where rounds of one width repeat, the three are one CUDA graph.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ....plugins import build, launch, rounds
from ...bundle.folder import KERNELS_FOLDER, KERNELS_LIST
from ...errors import BackendError, BundleError, NumericsError
from ..base import Check
from ..shapes import bucket
from .execution import Device, Work
from .graph import EngineGraph
from .memory import ALIGNMENT, KeptTensor, Staging

VARIABLE = "CSD_KERNELS"
# Tensors of `head_step` that the kernels write and read.
_DTYPES = {"x": "float32", "step": "int64", "token": "int64", "eps": "float32", "v": "float32"}


def load_kernels(folder: Path, check: Check) -> tuple[launch.LoadedKernels | None, str]:
    """Load the kernels that `CSD_KERNELS` names, or those in `kernels` of a bundle.

    Args:
        folder: of the bundle.
        check: called with the name of the list of the bundle's kernels, which has their hashes.

    Returns:
        The kernels, or None and the reason where the bundle has none that fit: the host can do
        what they do.

    Raises:
        BackendError: those that were named do not fit, with the command that builds others.
    """
    if named := os.environ.get(VARIABLE):
        try:
            return _load(Path(named)), ""
        except launch.LaunchError as error:
            raise BackendError(f"{error}, or unset {VARIABLE}") from error
    if not (folder / KERNELS_FOLDER).is_dir():
        return None, "no kernels in the bundle"
    try:
        check.code(KERNELS_LIST)
        return _load(folder / KERNELS_FOLDER), ""
    except (launch.LaunchError, BundleError) as error:
        return None, str(error)


def _load(folder: Path) -> launch.LoadedKernels:
    loaded = launch.load(folder)
    # The kernels read a structure that `rounds.Rounds` lays out.
    built = json.loads((folder / build.MANIFEST).read_text(encoding="utf-8"))
    if built.get("sources_sha256") != build.source_digest():
        raise launch.LaunchError(
            f"the kernels in {folder} were built from other sources than this csd's: run "
            f"python -m csd.plugins.build --out {folder}"
        )
    return loaded


class DeviceRounds:
    """See `HeadRounds`.

    Args:
        graph: `head_step` of a model.
        device: shared with the graphs.
        kernels: on that device.
    """

    def __init__(self, graph: EngineGraph, device: Device, kernels: launch.LoadedKernels) -> None:
        self.name = graph.name
        self._graph, self._device, self._kernels = graph, device, kernels
        self._staging = Staging(device.cuda, device.stream)
        self._runs = self._left = 0
        self._refusal = ""
        # Bytes that could not be had since the last plan, and why: trying again would cost the
        # recordings of graphs whose blocks are freed for it.
        self._denied: tuple[int, str] | None = None

    @property
    def left_to_the_host(self) -> str | None:
        """How many runs were left to the host and why the last of them was, or None."""
        if not self._left:
            return None
        return f"{self._left} of {self._runs} runs of {self.name} on the host: {self._refusal}"

    def plan(self, dims: Mapping[str, int]) -> None:
        """Make room for the largest run, where that can be had.

        Args:
            dims: the largest sizes that `head_step` is asked for.
        """
        self._denied = None
        (x,) = (tensor for tensor in self._graph.spec.inputs if tensor.name == "x")
        channels, widest = x.shape[1], min(dims["R"] // dims["N"], dims["S"])
        if widest < 2 or not isinstance(channels, int) or channels > rounds.MOST_CHANNELS:
            return
        # Guidance halves the tokens and doubles their rows.
        made = rounds.Rounds(dims["N"], channels, dims["S"], widest, guided=False)
        with contextlib.suppress(BackendError):
            self._device.arena.reserve(rounds=made.size)

    def run(self, start: rounds.Start, mods: KeptTensor) -> tuple[rounds.Finished, int, int] | None:
        """See `HeadRounds.run`."""
        self._device.arena.check(mods)
        self._runs += 1
        (count, channels), steps = start.initial.shape, len(start.tables)
        guided, widest = start.scale is not None, int(start.windows.max())
        branches = 2 if guided else 1
        if unfit := self._unfit(start, branches * count, widest):
            return self._refuse(unfit)
        made = rounds.Rounds(count, channels, steps, widest, guided=guided)
        dims = {"S": steps, "N": mods.shape[1]}
        try:
            self._reserve(made, dims, branches * count)
        except BackendError as error:  # the host needs less memory
            return self._refuse(str(error))
        address, stream = self._device.arena.address("rounds"), self._device.stream
        given = self._staging.inputs(made.uploaded)
        made.upload(start, address, given)
        self._device.cuda.to_device(address, given, stream)

        width, rows, calls = int(start.windows[-1]), 0, 0
        progress = self._staging.outputs(3 * 4).view(np.int32)
        while True:
            width = min(bucket(width), widest)
            self._graph.executor.submit(
                self._work(made, {**dims, "R": branches * count * width}, width, mods)
            )
            stream.synchronize()
            rows, calls = rows + count * width, calls + 1
            active, width, failed = progress.tolist()
            if failed or not active:
                break
        return self._finished(made), calls, rows

    def _refuse(self, reason: str) -> None:
        self._left += 1
        self._refusal = reason

    def _unfit(self, start: rounds.Start, chains: int, widest: int) -> str | None:
        """Why the kernels or the engine do not take a run, or None."""
        if not rounds.takes(start.generators, start.initial.shape[1]):
            return f"the kernels take Philox generators and at most {rounds.MOST_CHANNELS} channels"
        for tensor in (*self._graph.spec.inputs, *self._graph.spec.outputs):
            if tensor.dtype != (wanted := _DTYPES.get(tensor.name, tensor.dtype)):
                return f"its {tensor.name} is {tensor.dtype}, the kernels take {wanted}"
        least, most = self._graph.planned.ranges["R"]
        if least <= chains and chains * widest <= most:
            return None
        return f"R = {chains} to {chains * widest}, its engine and plan take {least} to {most}"

    def _reserve(self, made: rounds.Rounds, dims: dict[str, int], chains: int) -> None:
        # An engine may need more scratch for fewer rows, so every width that a round may have.
        widths = {min(bucket(width), made.width) for width in range(1, made.width + 1)}
        turn = max(self._graph.scratch_bytes({**dims, "R": chains * width}) for width in widths)
        if self._denied is not None and made.size + turn >= self._denied[0]:
            raise BackendError(self._denied[1])
        try:
            self._device.arena.reserve(rounds=made.size, turn=turn)
        except BackendError as error:
            self._denied = made.size + turn, str(error)
            raise
        version = self._staging.version
        self._staging.reserve(made.uploaded, ALIGNMENT + made.results[1])
        if version != self._staging.version:
            self._graph.executor.forget()  # recorded rounds write to what was freed
        self._graph.follow()

    def _work(
        self, made: rounds.Rounds, dims: dict[str, int], width: int, mods: KeptTensor
    ) -> Work:
        address, turn = self._device.arena.address("rounds"), self._device.arena.address("turn")
        at = {name: address + offset for name, offset in made.offsets.items()}

        def walk() -> None:
            self._launch(made.walk(address, width))
            progress = self._staging.outputs(3 * 4)
            self._device.cuda.to_host(progress, at["progress"], self._device.stream)

        return Work(
            key=("rounds", tuple(dims.items()), width, made.size, address, mods.address),
            shapes=self._graph.input_shapes(dims),
            addresses={
                "x": at["x"], "step": at["step"], "token": at["token"], "mods": mods.address,
                "eps": at["eps"], "v": at["network_v"],
            },
            scratch=(turn, self._graph.scratch_bytes(dims)),
            before=partial(self._launch, made.draft(address, width)),
            after=walk,
        )  # fmt: skip

    def _launch(self, call: launch.Call) -> None:
        try:
            launch.run(self._kernels, call, self._device.stream)
        except Exception as error:  # cuda.core raises its own exceptions
            reason = " ".join(str(error).split())[:200]
            raise BackendError(
                f"cannot launch {call.kernel} ({reason}): build the kernels again, or unset "
                f"{VARIABLE}"
            ) from error

    def _finished(self, made: rounds.Rounds) -> rounds.Finished:
        offset, size = made.results
        out = self._staging.outputs(ALIGNMENT + size)[ALIGNMENT:]
        address, stream = self._device.arena.address("rounds"), self._device.stream
        self._device.cuda.to_host(out, address + offset, stream)
        stream.synchronize()
        try:
            return made.download(out)
        except rounds.RoundsError as error:
            raise NumericsError(f"{error}: check the weights, or use --head sequential") from error

    def close(self) -> None:
        """Release host memory."""
        self._staging.close()
