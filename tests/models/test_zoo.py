"""The shipped pair: sizes, loading, and whether its images are what they should be."""

from __future__ import annotations

import re

import numpy as np
import pytest

from csd.models import MAR, MARConfig, load_mar
from csd.models.zoo import ZOO, zoo_entry
from csd.runtime import Bundle, CsdError, GenerateOptions
from csd.tools.quality import ImageClassifier, as_shown, balanced_labels

ENTRY = ZOO["fashion-mnist"]


def parameters(role):
    return sum(p.numel() for p in load_mar(ENTRY.weights(role), ENTRY.config(role)).parameters())


def test_the_draft_is_at_most_a_fifth_of_the_target_and_all_files_are_small():
    target = parameters("target")
    assert 2e6 <= target <= 4e6
    assert parameters("draft") <= target / 5
    assert sum(path.stat().st_size for path in ENTRY.folder.iterdir()) <= 12e6


def test_the_pair_makes_the_same_tokens():
    target, draft = ENTRY.config("target"), ENTRY.config("draft")
    assert (target.seq_len, target.token_dim, target.class_num) == (49, 16, 10)
    assert (draft.seq_len, draft.token_dim, draft.class_num) == (49, 16, 10)
    assert len(ENTRY.class_names) == target.class_num


def test_the_presets_of_the_latent_pair_fit_each_other():
    target, draft = (MARConfig.load(f"fashion_latent_{role}") for role in ("target", "draft"))
    for config in (target, draft):
        assert (config.seq_len, config.token_dim, config.class_num) == (64, 5, 10)
        assert config.latent_shape == (5, 8, 8)
    sizes = [sum(p.numel() for p in MAR(config).parameters()) for config in (target, draft)]
    assert 4e6 <= sizes[0] <= 8e6
    assert sizes[1] <= sizes[0] / 10


def test_an_unknown_pair_is_answered_with_the_known_ones():
    with pytest.raises(CsdError, match=re.escape("zoo is 'lsun': give one of fashion-mnist")):
        zoo_entry("lsun")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "least"), [("target", 0.75), ("draft", 0.6), ("csd", 0.7)])
def test_images_are_recognised_as_their_class(zoo_bundle, mode, least):
    # Far below the model card's figures: 40 images leave a standard error of 5 points.
    classifier = ImageClassifier(ENTRY.classifier, threads=2)
    labels = balanced_labels(40, 10)
    options = GenerateOptions(mode=mode, cfg=ENTRY.best_cfg, num_iter=16, head="auto")
    with Bundle.open(zoo_bundle).session() as session:
        made = session.generate(labels, options, seed=0)
    assert classifier.accuracy(as_shown(made.latents), labels) >= least
    assert 0.5 < made.tokens.std() < 0.9
    assert np.ptp(made.images) == 255
