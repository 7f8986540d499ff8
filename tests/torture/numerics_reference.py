"""The formulas of losses, metrics and balancing once more, in numpy and float64 and as plainly as they can be typed.

A reference takes the arrays of a call twice: `x`, which may be moved to see a derivative, and `c`, the same arrays where a loss takes them as constants.
"""

import math

import numpy as np
from scipy.linalg import eigh, solve_triangular
from scipy.spatial.distance import cdist, pdist
from scipy.special import binom, hyp2f1, logsumexp, ndtri, xlogy

SHORTEST = 1e-12  # a row no longer than this counts as zero and is divided by this


def unit(z):
    top = np.abs(z).max(-1, keepdims=True)
    length = top * np.sqrt(np.square(z / np.where(top > 0, top, 1)).sum(-1, keepdims=True))
    return z / np.maximum(length, SHORTEST)


def centred(z):
    z = z - z[:1]  # equal rows give exactly 0
    return z - z.mean(0)


def softmax(scores):
    return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))


# --- metrics ------------------------------------------------------------------------------------------------------------


def alignment(x, c, alpha=2, normalize=True):
    a, b = (unit(z) if normalize else z for z in x)
    return (np.square(a - b).sum(1) ** (alpha / 2)).mean()


def uniformity(x, c, t=2.0, normalize=True):
    z = unit(x[0]) if normalize else x[0]
    return logsumexp(-t * pdist(z, "sqeuclidean")) - math.log(len(z) * (len(z) - 1) / 2)


def spectrum(z, center=True, normalize=True):
    z = unit(z) if normalize else z
    top = np.abs(z).max() or 1.0
    rows = centred(z / top) if center else z / top
    values = np.square(np.linalg.svd(rows, compute_uv=False)) / len(z)
    live = values > np.finfo(float).eps ** 2 * max(z.shape) ** 2 * max(values[0], np.finfo(float).tiny)
    return np.pad(np.where(live, values, 0), (0, max(0, z.shape[1] - len(values)))), top


def w2(x, c, normalize=True, squared=False):
    z = unit(x[0]) if normalize else x[0]
    values, top = spectrum(z, True, False)
    square = 1 + np.square(z).sum(1).mean() - 2 / math.sqrt(z.shape[1]) * top * np.sqrt(values).sum()
    return max(square, 0) if squared else math.sqrt(max(square, 0))


def null_law(n, m, terms=4000):
    """Mean and deviation of 1 - W2^2 / 2 from hypergeometric functions and binomial series."""
    y = m / (n - 1)
    small, large = min(y, 1 / y), max(y, 1.0)
    mean = hyp2f1(-0.5, 0.5, 2, small) / math.sqrt(large)
    c0, c2 = hyp2f1(-0.5, -0.5, 1, small), -small / 8 * hyp2f1(-0.5, 1.5, 3, small)
    mean = math.sqrt((n - 1) / n) * (mean + math.sqrt(large) / m * ((1 - c0) / 2 - 2 * c2))
    coefficients = binom(0.5, np.arange(2 * terms)) * math.sqrt(small) ** np.arange(2 * terms)
    k = np.arange(2, 400)
    c = np.array([coefficients[:terms] @ coefficients[each : terms + each] for each in k])
    return mean, math.sqrt((n - 1) / n * large / m**2 * 2 * (k * c**2).sum() + mean**2 / (2 * m * n**2))


def zscore(x, c):
    n, m = x[0].shape
    mean, sd = null_law(n, m)
    return (mean - np.sqrt(singular_spectrum(x, c)).sum() / math.sqrt(m)) / sd


def gaussian_w2(x, c):
    mean, cov = x[0], (x[1] + x[1].T) / 2
    values = np.clip(eigh(cov, eigvals_only=True), 0, None)
    return math.sqrt(mean @ mean + np.square(np.sqrt(values) - 1 / math.sqrt(len(mean))).sum())


def gaussian_kl(x, c):
    mean, cov = x[0], (x[1] + x[1].T) / 2
    m = len(mean)
    return 0.5 * (m * np.trace(cov) + m * mean @ mean - m - np.linalg.slogdet(m * cov)[1])


def bhattacharyya(x, c):
    mean, cov = x[0], (x[1] + x[1].T) / 2
    m = len(mean)
    middle = (cov + np.eye(m) / m) / 2
    logs = [np.linalg.slogdet(matrix)[1] for matrix in (middle, cov, np.eye(m) / m)]
    return mean @ np.linalg.solve(middle, mean) / 8 + 0.5 * (logs[0] - (logs[1] + logs[2]) / 2)


def singular_spectrum(x, c):
    values, top = spectrum(x[0])
    return values * top**2


def rankme(x, c):
    root = np.sqrt(spectrum(x[0], False, False)[0])
    share = root / (root.sum() or 1)
    return math.exp(-xlogy(share, share).sum()) if root.sum() > 0 else 0.0


def alpha_req(x, c):
    """Through the eigenvalues that are not 0; no answer (nan) where one of them is as small as the rounding of the largest."""
    values = spectrum(x[0], True, False)[0]
    level = min(x[0].shape) * np.finfo(float).eps * values[0]
    if ((values > 0) & (values < 64 * level)).any():
        return math.nan
    values = values[values > 0]
    if len(values) < 2:
        return math.inf
    rank = np.arange(1, len(values) + 1)
    return -np.polyfit(np.log(rank), np.log(values), 1, w=rank**-0.5)[0]  # weights of residuals, before squaring


def stable_rank(x, c):
    values = spectrum(x[0])[0]
    return values.sum() / (values[0] or 1)


def participation_ratio(x, c):
    values = spectrum(x[0])[0]
    return values.sum() ** 2 / (np.square(values).sum() or 1)


def embedding_std(x, c):
    return np.sqrt(np.square(centred(unit(x[0]))).mean(0)).mean()


def discriminant(x, c, delta=1e-4):
    z = x[0]
    images, _, m = z.shape
    mean = z.mean(1)
    within, between = (z - mean[:, None]).reshape(-1, m), centred(mean)
    _, s, directions = np.linalg.svd(within)
    spread = np.pad(s**2 / len(within), (0, m - len(s))) + delta
    return (
        np.square(np.linalg.svd(between @ directions.T / np.sqrt(spread), compute_uv=False)[: min(images - 1, m)])
        / images
    )


def lidar(x, c):
    values = discriminant(x, c)
    share = values / (values.sum() or 1)
    return math.exp(-xlogy(share, share).sum()) if values.sum() > 0 else 0.0


def silhouettes(x, labels):
    z = unit(x)
    distance = np.clip(1 - z @ z.T, 0, None)
    np.fill_diagonal(distance, 0)
    classes, out = np.unique(labels), []
    for i, own in enumerate(labels):
        if (labels == own).sum() == 1:
            out.append(0.0)
            continue
        a = distance[i, labels == own].sum() / ((labels == own).sum() - 1)
        b = min(distance[i, labels == other].mean() for other in classes if other != own)
        out.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return np.array(out)


# --- balancing ----------------------------------------------------------------------------------------------------------


def sinkhorn(scores, epsilon=0.05, iterations=3):
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - logsumexp(log_q, axis=0, keepdims=True)
        log_q = log_q - logsumexp(log_q, axis=1, keepdims=True)
    return softmax(log_q)


def self_assignment(x, c):
    return sinkhorn(unit(x[0]) @ unit(x[1]).T)


def balanced(x, c):
    s, r = x
    return np.where(r < 1, 1 - (1 - s) * r, (1 + s) / np.where(r > 0, r, 1) - 1)


# --- losses -------------------------------------------------------------------------------------------------------------


def nt_xent(x, c, temperature=0.5):
    z = unit(np.concatenate(x))
    n = len(x[0])
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    other = np.roll(np.arange(2 * n), n)
    return (logsumexp(logits, axis=1) - logits[np.arange(2 * n), other]).mean()


def info_nce(x, c, temperature=0.2):
    q, k = unit(x[0]), unit(x[1])
    if len(x) == 3:
        logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ unit(x[2]).T], 1) / temperature
        return (logsumexp(logits, axis=1) - logits[:, 0]).mean()
    logits = q @ k.T / temperature
    return (logsumexp(logits, axis=1) - logits.diagonal()).mean()


def byol(x, c):
    return (2 - 2 * (unit(x[0]) * unit(c[1])).sum(1)).mean()  # a zero row has no direction: cosine 0


def simsiam(x, c):
    return -(unit(x[0]) * unit(c[1])).sum(1).mean()


def coding_rate(x, c, eps=0.5):
    (n, m), s = x[0].shape, np.linalg.svd(unit(x[0]), compute_uv=False)
    return 0.5 * np.log1p(m / (n * eps) * s**2).sum()


def simdino(x, c):
    student, teacher = x[:3], c[3:]
    (n, m), pairs = student[0].shape, [(0, 1), (1, 0), (2, 0), (2, 1)]
    loss = -np.mean([(unit(student[b]) * unit(teacher[a])).sum(1).mean() for b, a in pairs])
    return loss - (m + n) / (m * n) * (coding_rate(student[:1], c) + coding_rate(student[1:2], c)) / 2


def standardized(z, eps=1e-5):
    rows = centred(z)
    return rows / np.sqrt(np.square(rows).mean(0) + eps)


def barlow(x, c, lambd=0.0051):
    corr = standardized(x[0]).T @ standardized(x[1]) / len(x[0])
    beside = corr - np.diag(np.diag(corr))
    return np.square(1 - np.diag(corr)).sum() + lambd * np.square(beside).sum()


def vicreg_terms(x, c):
    n, m = x[0].shape
    variance, covariance = 0.0, 0.0
    for z in x:
        cov = centred(z).T @ centred(z) / (n - 1)
        variance += np.clip(1 - np.sqrt(np.diag(cov) + 1e-4), 0, None).mean() / 2
        covariance += np.square(cov - np.diag(np.diag(cov))).sum() / m
    return np.array([np.square(x[0] - x[1]).mean(), variance, covariance])


def vicreg(x, c):
    return vicreg_terms(x, c) @ [25, 25, 1]


def _inverse_root(corr, shrink):
    values, vectors = np.linalg.eigh((1 - shrink) * corr + shrink * np.eye(len(corr)))
    return vectors / np.sqrt(values) @ vectors.T


def zero_fcl(x, c, shrink=0.1):
    whitened = []
    for free, fixed in zip(x, c, strict=True):
        s = standardized(fixed)
        whitened.append(standardized(free) @ _inverse_root(s.T @ s / len(s), shrink))
    return np.square(1 - (whitened[0] * whitened[1]).mean(0)).sum()


def zero_icl(x, c, shrink=0.1):
    return zero_fcl([z.T for z in x], [z.T for z in c], shrink)


def cholesky_whiten(x, c):
    rows = centred(x[0])
    top = np.abs(rows).max() or 1.0  # whitening knows no scale
    rows = rows / top
    factor = np.linalg.cholesky(rows.T @ rows / (len(rows) - 1))
    return solve_triangular(factor, rows.T, lower=True).T


def w_mse(x, c):
    a, b = (unit(cholesky_whiten([z], c)) for z in x)
    return 2 - 2 * (a * b).sum(1).mean()


def iter_norm(x, c, iterations=4):
    rows = centred(x[0])
    rows = rows / (np.abs(rows).max() or 1.0)
    sigma = rows.T @ rows / (len(rows) - 1)
    trace = np.trace(sigma) or 1.0
    p = np.eye(len(sigma))
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * p @ p @ p @ sigma / trace
    return rows @ p / math.sqrt(trace)


def intl(x, c):
    whitened = [iter_norm([z], c) for z in x]
    n, m = x[0].shape
    a, b = map(unit, whitened)
    trace = sum(np.square(1 - np.square(w).sum(0) / (n - 1)).sum() for w in whitened)
    return 2 - 2 * (a * b).sum(1).mean() + max(0, 0.01 * (math.log2(m) - 3)) * trace


def cross_entropy(scores, target, temperature):
    scaled = scores / temperature
    return (target * (logsumexp(scaled, axis=1, keepdims=True) - scaled)).sum(1)


def swav(x, c):
    codes = [sinkhorn(z) for z in c]
    return (cross_entropy(x[0], codes[1], 0.1) + cross_entropy(x[1], codes[0], 0.1)).mean() / 2


def dino(x, c):
    """Three views of the student, then two of the teacher."""
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    return np.mean([cross_entropy(x[b], c[3 + a], 0.1).mean() for b, a in pairs])


def excb(x, c):
    """Two projected, three predicted, two targets: eight terms."""
    pairs = [(1, 5), (0, 6)] + [(b, a) for b in (2, 3, 4) for a in (5, 6)]
    return np.mean([cross_entropy(x[b], c[a], 0.1).mean() for b, a in pairs])


def resa(x, c):
    return cross_entropy(unit(x[0]) @ unit(x[1]).T, c[2], 0.4).mean()


def sigreg(x, c, directions, points=17, t_max=3.0):
    t = np.linspace(0, t_max, points)[1:]
    angles = (x[0] @ directions)[None] * t[:, None, None]
    normal = np.exp(-(t**2) / 2)[:, None]
    distance = (np.cos(angles).mean(1) - normal) ** 2 + np.sin(angles).mean(1) ** 2
    weight = np.full(len(t), 2 * t[0])
    weight[-1] = t[0]
    return len(x[0]) * ((weight[:, None] * normal * distance).sum(0)).mean()


def _sorted_distance(rows, directions, offset):
    n = len(rows)
    quantiles = ndtri((np.arange(1, n + 1) - offset) / (n + 1 - 2 * offset))
    return np.square(np.sort(rows @ directions, axis=0) - quantiles[:, None]).mean()


def sliced_w2(x, c, directions):
    return _sorted_distance(unit(x[0]) * math.sqrt(x[0].shape[1]), directions, 0.5)


def visreg(x, c, directions):
    (z,), (fixed,) = x, c
    var, held = np.square(centred(z)).mean(0), np.square(centred(fixed)).mean(0)
    std, held = (np.where(v > 1e-12, np.sqrt(v), 1e-6) for v in (var, held))
    return np.square(std - 1).mean() + np.square(z.mean(0)).mean() + _sorted_distance(centred(z) / held, directions, 0)


def local_vicreg(x, c, matches=2):
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        distance = np.stack([cdist(p, q, "sqeuclidean") for p, q in zip(c[a], c[b], strict=True)])
        first = np.sort(np.argsort(distance.min(2), axis=1, kind="stable")[:, :matches], axis=1)
        second = np.take_along_axis(distance.argmin(2), first, 1)
        rows = [np.take_along_axis(x[i], at[:, :, None], 1) for i, at in ((a, first), (b, second))]
        flat = [maps.reshape(len(maps), -1) for maps in rows]
        invariance, variance, _ = vicreg_terms(flat, flat)
        places = [vicreg_terms([maps[:, p] for maps in rows], c)[2] for p in range(matches)]
        total += 25 * invariance + 25 * variance + np.mean(places)
    return total / 2


def task(x, c):
    target = c[1]
    return cross_entropy(x[0], target, 1.0).mean()


def standardize_tiles(x, c, eps=1e-5):
    rows = x[0] - x[0].mean((-2, -1), keepdims=True)
    return rows / np.sqrt(np.square(rows).mean((-2, -1), keepdims=True) + eps)


def _sorted_distances(x):
    """Distances of each row from the others, ascending, by all pairs."""
    z = x / max(np.abs(x).max(), np.finfo(np.float64).tiny)
    distance = np.linalg.norm(z[:, None] - z[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.sort(distance, axis=1)[:, :-1]


def nearest_distances(x, c):
    return _sorted_distances(x[0])[:, :1] * np.abs(x[0]).max()


def mle_dimension(x, c):
    d = _sorted_distances(x[0])[:, :3]
    return 1 / np.log(d[:, 2:] / d[:, :2]).mean()


def two_nn(x, c):
    d = _sorted_distances(x[0])
    kept = int(len(d) * 0.9)
    mu = np.sort(np.log(d[:, 1] / d[:, 0]))[:kept]
    y = -np.log1p(-np.arange(1, kept + 1) / len(d))
    return mu @ y / (mu @ mu)
