"""Proposals through Optuna's ask and tell."""

from __future__ import annotations

import logging
import warnings

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler

from search.study import SamplerSection
from spaces.space import Space

logger = logging.getLogger(__name__)


def make_sampler(section: SamplerSection, seed: int, proposals: int) -> BaseSampler:
    """Builds the sampler of one proposal.

    The seed follows from the number of proposals so far, so a study that is continued proposes what an undisturbed
    one would have, and never repeats a stream.

    Args:
        section: The study file's ``sampler``.
        seed: The study's seed.
        proposals: Proposals made before this one.
    """
    seed = (seed * 1_000_003 + proposals) % 2**31
    if section.name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Multivariate and grouped TPE are marked experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            n_startup_trials=section.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        )


def baseline_sampler(space: Space, seed: int) -> BaseSampler:
    """Builds the sampler of trial 0, which proposes every family off."""
    switches = {part.family.name: False for part in space.families}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(switches, RandomSampler(seed=seed))
