"""Checks of settings: errors with the setting, its value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


def format_value(value: float | None) -> str:
    """A number as YAML writes it."""
    return "null" if value is None else str(value)


def check_at_least(setting: str, value: float | int, low: float | int, remedy: str) -> None:
    """Refuse a value below `low` (or NaN)."""
    if not value >= low:
        raise ValueError(f"{setting} ({value}) must be at least {low}: {remedy}")


def check_positive(setting: str, value: float | int, remedy: str) -> None:
    """Refuse zero, a negative value or NaN."""
    if not value > 0:
        raise ValueError(f"{setting} ({value}) must be greater than 0: {remedy}")


def check_within(
    setting: str, value: float | int, low: float | int, high: float, remedy: str
) -> None:
    """Refuse a value outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{setting} ({value}) must lie in [{low}, {high}]: {remedy}")


def check_one_of(setting: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{setting} ({value!r}) must be one of {', '.join(choices)}")


def check_clip_range(low: float, high: float, dual: float | None = None) -> None:
    """Check the clip [1 - low, 1 + high] of the ratio; a dual clip must be above 1."""
    check_within(
        "clip_low",
        low,
        0.0,
        1.0,
        "the ratio is kept above 1 - clip_low; .2 is usual, 1 is no lower limit",
    )
    check_at_least(
        "clip_high", high, 0.0, "the ratio is kept below 1 + clip_high; .2 is usual, .28 is DAPO's"
    )
    if dual is not None and not dual > 1:
        raise ValueError(
            f"dual_clip ({dual}) must be greater than 1: 3 is usual, null switches it off"
        )


def check_per_draw_settings(ratio_level: str, clip_first_draw: float, draw_discount: float) -> None:
    """Refuse settings per draw with a ratio per decision."""
    if ratio_level == "decision" and (clip_first_draw < 1 or draw_discount < 1):
        raise ValueError(
            "ratio_level (decision) has one ratio for all draws, but clip_first_draw "
            f"({clip_first_draw}) and "
            f"draw_discount ({draw_discount}) differ per draw: set both to 1, or ratio_level to "
            "draw"
        )


def check_reduction(choice: str, max_length: int | None) -> None:
    """Check that `max_length` is given for reduction `constant`, and for no other."""
    check_one_of("reduction", choice, ("token", "sequence", "constant"))
    if choice == "constant":
        if max_length is None:
            raise ValueError(
                "max_length (null) is needed by reduction 'constant': give the most draws a "
                "trajectory can have"
            )
        check_at_least("max_length", max_length, 1, "it is the most draws a trajectory can have")
    elif max_length is not None:
        raise ValueError(
            f"max_length ({max_length}) has no meaning for reduction {choice!r}: set it to null"
        )


def check_penalty(kl_coefficient: float, kl_estimator: str, entropy_coefficient: float) -> None:
    """Check that the coefficients are not negative."""
    check_at_least(
        "kl_coefficient",
        kl_coefficient,
        0.0,
        "it is a price on leaving the reference; 0 switches it off",
    )
    check_one_of("kl_estimator", kl_estimator, ("k1", "k2", "k3"))
    check_at_least(
        "entropy_coefficient",
        entropy_coefficient,
        0.0,
        "it is a bonus for entropy; 0 switches it off",
    )


def check_kl_cap(cap: float | None, kl_coefficient: float) -> None:
    """Check that a bound on the KL penalty is positive and the penalty is on."""
    if cap is None:
        return
    check_positive("kl_cap", cap, "10 is usual, null switches it off")
    if not kl_coefficient:
        raise ValueError(
            f"kl_cap ({cap}) bounds the KL penalty, and kl_coefficient is 0: raise it, or set "
            "kl_cap to null"
        )


def check_discount(gamma: float, gae_lambda: float | None = None) -> None:
    """Check that discounts are in [0, 1]."""
    check_within("gamma", gamma, 0.0, 1.0, "1 is usual for text, .99 for robots")
    if gae_lambda is not None:
        check_within(
            "gae_lambda",
            gae_lambda,
            0.0,
            1.0,
            ".95 is usual, 1 is Monte Carlo, 0 is one step of TD",
        )
