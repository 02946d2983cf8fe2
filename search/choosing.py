"""Choosing a design of a study by the options of a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analysis.choose import Choice, choose
from search.confirm import confirmed
from search.store import Store
from spaces.errors import UserError


def choose_by(options: argparse.Namespace, store: Store) -> Choice:
    """Picks the trial that ``--pick``, ``--above``, ``--under`` and ``--weight`` ask for.

    Without ``--pick`` it is the knee.

    Raises:
        UserError: An option is wrong, or nothing can be picked.
    """
    above, under, weights = (_numbers(f"--{name}", getattr(options, name)) for name in ("above", "under", "weight"))
    pick = options.pick
    if pick is None:
        option = given(options)
        if option == "--weight":
            pick = "weighted"
        elif option:
            raise UserError(
                f"{option}: needs --pick to say which of the designs that keep it, --pick "
                f"{'fastest' if option == '--above' else 'most_accurate'} for instance."
            )
    return choose(
        confirmed(store),
        store.study.objective_records,
        pick or "knee",
        above=above,
        under=under,
        weights=weights,
    )


def given(options: argparse.Namespace) -> str | None:
    """The first option of choosing that was given, ``--above`` for instance."""
    names = ("pick", "above", "under", "weight")
    return next((f"--{name}" for name in names if getattr(options, name)), None)


def _numbers(option: str, given: Sequence[str]) -> dict[str, float]:
    """Reads ``METRIC=NUMBER``, repeated.

    Raises:
        UserError: It is something else, or names a metric twice.
    """
    found: dict[str, float] = {}
    for text in given:
        metric, equals, number = (part.strip() for part in text.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = None
        if not metric or not equals or value is None:
            raise UserError(f"{option}: must read METRIC=NUMBER, bbox_mAP=0.4 for instance, but got '{text}'.")
        if metric in found:
            raise UserError(f"{option}: must name a metric once, but {metric} is there twice.")
        found[metric] = value
    return found
