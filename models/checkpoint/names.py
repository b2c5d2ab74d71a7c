"""Names of tensors without what wrappers put before them.

DistributedDataParallel, `torch.compile`, averaging and training frameworks save a model as a part
of their own. What stands before every name, once or nested, tells nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...runtime.command.text import listed, shown
from ...runtime.errors import WeightsError

# Left out wherever they stand: PyTorch's own, within a model too.
_ANYWHERE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Left out where every name begins with one.
_WRAPPERS = {
    "module", "model", "net", "network", "_forward_module", "ema", "ema_model", "model_ema",
    "online_model", "state_dict",
}  # fmt: skip


def unwrapped(
    names: Iterable[str], path: Path, landmark: str = "", *, others: bool = False
) -> dict[str, str]:
    """Return names by what they are without wrappers.

    Args:
        names: as they stand in a file.
        path: of the file, for messages.
        landmark: a name that the model has, as `z_proj.weight`; what stands before it in every
            other name too is a wrapper, whatever it is called.
        others: names without what stands before the landmark belong to something else, and are
            left out.

    Raises:
        WeightsError: two names become one, or the landmark is there several times.
    """
    plain = {name: _without_marks(name) for name in names}
    while (first := _common_wrapper(plain.values())) is not None:
        plain = {name: short[len(first) + 1 :] for name, short in plain.items()}
    before = _before(plain.values(), landmark)
    if len(before) > 1:
        raise WeightsError(
            f"{path} holds {landmark} under {listed([shown(each) for each in before])}: give a "
            "file of one model"
        )
    start = before[0] if before else ""
    if start and (others or all(short.startswith(start) for short in plain.values())):
        plain = {n: s[len(start) :] for n, s in plain.items() if s.startswith(start)}
    found: dict[str, str] = {}
    for name, short in plain.items():
        if short in found:
            raise WeightsError(f"{path} holds {shown(name)} and {shown(found[short])}, which are "
                               "one name: give a file of one model")  # fmt: skip
        found[short] = name
    return found


def _without_marks(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _ANYWHERE)


def _common_wrapper(names: Iterable[str]) -> str | None:
    firsts = {name.partition(".")[:2] for name in names}
    if len(firsts) != 1:
        return None
    ((first, dot),) = firsts
    return first if dot and first in _WRAPPERS else None


def _before(names: Iterable[str], landmark: str) -> list[str]:
    """What stands before the landmark, shortest first; nothing where it stands alone."""
    if not landmark:
        return []
    ends = [name for name in names if name == landmark or name.endswith(f".{landmark}")]
    starts = sorted((name[: -len(landmark)] for name in ends), key=len)
    return [] if "" in starts else starts
