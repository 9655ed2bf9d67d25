"""How rare is what no draw has shown: upper bounds, in closed form."""

from __future__ import annotations

import math

import numpy as np

_SPLITS = np.linspace(0.02, 1.0, 50)


def tail_bound(distance: float, toss_variance: float, seed_error: float, freedom: float) -> float:
    """Upper bound of the chance that tosses and seeds together lead as far as ``distance``, either way.

    Whatever share of the way each of the two is held to, one of them must have gone its own: so any split bounds the
    chance, and the best of several is taken.

    Args:
        distance: in errors, above 0.
        toss_variance: of the sum over tosses: the sum of the squares of what each is about.
        seed_error: standard error by seeds, in errors; 0 where they have no part.
        freedom: degrees of freedom of ``seed_error``.
    """
    if seed_error == 0:
        return min(1.0, _tosses(distance, toss_variance))
    ways = [
        _tosses((1 - share) * distance, toss_variance) + _student(share * distance / seed_error, freedom)
        for share in _SPLITS.tolist()
    ]
    return min(1.0, *ways)


def _tosses(distance: float, variance: float) -> float:
    """Hoeffding's inequality (Journal of the American Statistical Association 58, 1963), both sides."""
    if variance == 0:
        return 0.0 if distance > 0 else 1.0
    return 2 * math.exp(-(distance**2) / (2 * variance))


def _student(distance: float, freedom: float) -> float:
    """Both tails of the t distribution, from above.

    Beyond the distance x the density at u is at most u / x times itself, and at most the power law that it tends to:
    both have integrals in closed form.
    """
    log_density = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi * freedom) / 2
    power_law = (freedom - 1) / 2 * math.log(freedom) - freedom * math.log(distance)
    bounds = [power_law]
    if freedom > 1:
        decay = (freedom - 1) / 2 * math.log1p(distance**2 / freedom)
        bounds.append(math.log(freedom / (freedom - 1)) - math.log(distance) - decay)
    return 2 * math.exp(min(0.0, log_density + min(bounds)))
