"""What a bundle offers to choose from, and what was chosen as the runtime's own options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...runtime.bundle.manifest import Manifest, local_graphs
from ...runtime.errors import OptionError
from ...runtime.labels import class_name, read_labels
from ...runtime.noise import SeededNoise
from ...runtime.options import AUTO_REFRESH, CHAIN_HEADS, SOLVER, GenerateOptions, parse_refresh

# What the page begins with: most models are shown with guidance.
GUIDANCE = 3.0
FULL = "1"
_REFRESHES = (FULL, "2", "3", "4", AUTO_REFRESH)


@dataclass(frozen=True)
class Controls:
    """What can be chosen for a bundle.

    Attributes:
        classes: by name, or by index where the bundle has no names.
        modes: that its models can run.
        heads: samplers of its heads.
        max_gamma: largest gamma of mode csd; 0 where there is no draft.
        refreshes: periods of full AR steps, as `parse_refresh` reads them; the first alone where
            the bundle has no local steps.
    """

    classes: tuple[str, ...]
    modes: tuple[str, ...]
    heads: tuple[str, ...]
    max_gamma: int
    refreshes: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Controls:
        """What can be chosen for the bundle of a manifest."""
        drafts, target = "draft" in manifest.models, manifest.target
        return cls(
            classes=tuple(class_name(k, manifest.class_names) for k in range(target.class_num)),
            modes=("target", "csd", "draft") if drafts else ("target",),
            heads=(*CHAIN_HEADS, SOLVER) if target.solved else CHAIN_HEADS,
            max_gamma=manifest.max_gamma if drafts else 0,
            refreshes=_REFRESHES if local_graphs(manifest) else (FULL,),
        )

    @property
    def gamma(self) -> int:
        """What the page begins with."""
        return min(GenerateOptions().gamma, max(1, self.max_gamma))

    @property
    def head(self) -> str:
        """What the page begins with."""
        return GenerateOptions().head


@dataclass(frozen=True)
class Choice:
    """One image of one setting.

    Attributes:
        label: class index.
        seed: of its noise.
        options: how it is decoded.
    """

    label: int
    seed: int
    options: GenerateOptions

    @property
    def of_target(self) -> Choice:
        """The same by the target alone: exact, all AR steps full, with the guidance chosen."""
        alone = replace(self.options, mode="target", head="auto", refresh=1)
        return replace(self, options=replace(alone, gamma=GenerateOptions().gamma))


def choose(
    manifest: Manifest,
    label: str,
    seed: object,
    mode: object,
    head: object,
    gamma: object,
    refresh: str,
    guidance: object,
) -> Choice:
    """Read what was chosen; the session checks it against the bundle besides.

    Args:
        manifest: of the bundle.
        label: a class, by name or index.
        seed: whole number.
        mode: of decoding.
        head: head sampler.
        gamma: of mode csd; not looked at in the others, which have none.
        refresh: as `parse_refresh` reads it.
        guidance: scale.

    Raises:
        OptionError: a value is of another type or out of range.
    """
    names = manifest.class_names
    if names is None or label not in names:
        labels = read_labels(label, manifest.target.class_num, names)
    else:  # a name may have commas
        labels = [names.index(label)]
    if len(labels) != 1:
        raise OptionError(f"{len(labels)} classes are named: give one")
    values = {"mode": mode, "head": head, "refresh": parse_refresh(refresh), "cfg": guidance}
    if mode == "csd":
        values["gamma"] = gamma
    options = GenerateOptions(**values)  # pyright: ignore[reportArgumentType]
    return Choice(labels[0], SeededNoise(seed).seed, options)  # pyright: ignore[reportArgumentType]
