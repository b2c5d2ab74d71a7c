"""Names of the classes of well-known data sets.

`imagenet.tsv` has a line for each of ImageNet's 1,000 classes (ILSVRC 2012), in the order of their
numbers: the synset of WordNet 3.0 that the class is, and its first word. Two that share it are told
apart by another word of theirs, or by their lexicographer file. The words are WordNet's, under the
licence beside them.
"""

from __future__ import annotations

import functools
from pathlib import Path

IMAGENET_CLASSES = 1000
_FILE = Path(__file__).parent / "imagenet.tsv"


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 classes by index: `goldfish` is 1."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t")[1] for line in lines)
