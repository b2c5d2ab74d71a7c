"""The model pairs that ship with csd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.config import MARConfig
from ..runtime.errors import WeightsError

_FOLDER = Path(__file__).parent / "zoo"

FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


@dataclass(frozen=True)
class ZooEntry:
    """A shipped pair.

    Attributes:
        name: as in `csd-export --zoo NAME`.
        folder: where its files lie.
        class_names: names of the labels.
        best_cfg: guidance scale at which the target's images are recognised best.
    """

    name: str
    folder: Path
    class_names: tuple[str, ...]
    best_cfg: float

    def weights(self, role: str) -> Path:
        """Path of the weights of `target` or `draft`."""
        return self.folder / f"{role}.safetensors"

    def config(self, role: str) -> MARConfig:
        """Configuration of `target` or `draft`."""
        return MARConfig.load(self.folder / f"{role}.json")

    @property
    def classifier(self) -> Path:
        """ONNX classifier: `image [N, 1, 28, 28]` in [-1, 1] -> `logits [N, classes]`."""
        return self.folder / "classifier.onnx"


ZOO = {
    "fashion-mnist": ZooEntry("fashion-mnist", _FOLDER / "fashion_mnist", FASHION_CLASSES, 5.0),
}


def zoo_entry(name: str) -> ZooEntry:
    """Return a shipped pair.

    Raises:
        WeightsError: there is no pair of that name, or its files are not installed.
    """
    entry = ZOO.get(name)
    if entry is None:
        raise WeightsError(f"zoo is {name!r}: give one of {', '.join(ZOO)}")
    if not entry.weights("target").is_file():
        raise WeightsError(f"the files of {name} are not in {entry.folder}: install csd again")
    return entry
