"""What the atlas says about an array: distances, ranks, lengths, and its spectrum thinned to 128 ranks."""

import numpy as np
import torch

from wssl.core.rows import normalize_rows
from wssl.metrics.diagnosis import diagnose
from wssl.metrics.spectrum import embedding_std, participation_ratio, rankme, singular_spectrum
from wssl.metrics.wasserstein import uniformity_floor, wasserstein_uniformity

RANKS = 128


def effective_rank(values):
    """exp of the entropy of the eigenvalues themselves."""
    share = values / values.sum()
    return float((-torch.special.xlogy(share, share).sum()).exp())


def thinned(values):
    """Ranks, about evenly spaced in their logarithm, and the eigenvalues there over their mean."""
    ranks = np.unique(np.geomspace(1, len(values), RANKS).round().astype(int))
    return ranks.tolist(), [float(f"{value:.4g}") for value in (values / values.mean())[ranks - 1].tolist()]


def below(values):
    """Eigenvalues below a millionth of their mean."""
    return int((values < 1e-6 * values.mean()).sum())


def judged(z):
    """Verdict and dead directions of `diagnose`."""
    found = diagnose(z)
    return {"status": found.status, "dead directions": found.values["dead directions"].value}


def numbers(rows):
    """All numbers of one array (n, m), on unit rows unless their name says otherwise."""
    z = torch.from_numpy(np.ascontiguousarray(rows, dtype="float32"))
    n, m = z.shape
    values = singular_spectrum(z)
    ranks, spectrum = thinned(values)
    mean = values.mean()
    rank, part = effective_rank(values), float(participation_ratio(z))
    return {
        "n": n,
        "m": m,
        "W2": float(wasserstein_uniformity(z)),
        "W2 floor": float(uniformity_floor(n, m)),
        "RankMe of raw rows": float(rankme(z)),
        "RankMe": float(rankme(z, center=True, normalize=True)),
        "effective rank": rank,
        "effective rank / m": rank / m,
        "participation": part,
        "participation / m": part / m,
        "std * sqrt m": float(embedding_std(z)) * m**0.5,
        **judged(z),
        "mean length": float(normalize_rows(z.double()).mean(0).norm()),
        "first": float(values[0] / mean),
        "median": float(values[m // 2] / mean),
        "last": float(values[-1] / mean),
        "directions below 1e-6": below(values),
        "directions below 1e-6, raw rows": below(singular_spectrum(z, normalize=False)),
        "features that never vary": int((z == z[0]).all(0).sum()),
        "ranks": ranks,
        "spectrum": spectrum,
    }
