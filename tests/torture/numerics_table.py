"""Every public function of metrics, balance and losses: how its inputs are made, and what it promises. A new loss is one line here; `tests/test_numerics.py` fails without it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import wssl.balance
import wssl.losses
import wssl.metrics
from tests.torture import numerics_reference as ref

KINDS = (
    "plain", "low rank", "twins", "dead columns", "axes", "constant", "zero row", "subnormal", "spread", "cone",
)  # fmt: skip
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# decimal exponents of the entries at which a value has to be right; by what the mathematics does with an entry
ANY = {"float64": (-150, 150), "float32": (-20, 20), "bfloat16": (-20, 20), "float16": (-3, 3)}  # no scale is left
SQUARES = {"float64": (-150, 140), "float32": (-20, 15), "bfloat16": (-20, 15), "float16": (-3, 3)}
FOURTH = {"float64": (-150, 70), "float32": (-20, 7), "bfloat16": (-20, 7), "float16": (-3, 3)}
BELOW_1E15 = {"float64": (-150, 14), "float32": (-20, 14), "bfloat16": (-20, 14), "float16": (-3, 3)}  # as it says
SINGLE = ANY | {"float64": (-20, 20)}  # beside numbers kept in float32
COSINES = {name: (0, 0) for name in DTYPES}  # entries are cosines, shares or moments


@dataclass(frozen=True)
class Case:
    """One input; a function of these eight."""

    n: int
    m: int
    kind: str = "plain"
    exponent: float = 0
    dtype: str = "float32"
    layout: str = "contiguous"
    seed: int = 0


def _numbers(case, stream, n, m):
    rng = np.random.default_rng([case.seed, stream])
    z = rng.standard_normal((n, m))
    match "constant" if case.layout == "expanded" else case.kind:
        case "low rank":
            rank = int(rng.integers(0, min(n, m) + 1))
            z = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, m)) / math.sqrt(max(rank, 1))
        case "twins":
            z = z[rng.integers(0, max(1, n // 4), n)]
        case "dead columns":
            z[:, rng.random(m) < 0.5] = 0
        case "axes":  # exactly repeated eigenvalues
            z = np.zeros((n, m))
            z[np.arange(n), np.arange(n) % m] = 1 - 2 * (np.arange(n) // m % 2)
        case "constant":
            z = np.broadcast_to(z[:1], (n, m)).copy()
        case "zero row":
            z[rng.integers(0, n)] = 0
        case "spread":
            z = z * np.geomspace(1, 1e-6, m)
        case "cone":
            z = rng.standard_normal(m) + (1e-3 if case.dtype in ("float32", "float64") else 0.1) * z
    return z * 10.0**case.exponent


def matrix(case, stream=0, shape=None, dtype=None):
    """Tensor of `shape` (default (n, m)), type and layout; different streams are different draws."""
    shape = shape or (case.n, case.m)
    n, m = math.prod(shape[:-1]), shape[-1]
    dtype = DTYPES[dtype or case.dtype]
    z = torch.from_numpy(_numbers(case, stream, n, m)).to(dtype)
    if case.kind == "subnormal":
        z.view(-1)[1 :: 3 + stream] = torch.finfo(dtype).smallest_normal / 3
    if len(shape) > 2 or case.layout == "contiguous":
        return z.view(shape)
    if case.layout == "transposed":
        return z.T.contiguous().T
    if case.layout == "strided":
        return torch.stack([z, torch.full_like(z, torch.nan)], 2).flatten(1)[:, ::2]
    return z[:1].expand(shape)


def _one(case):
    return [matrix(case)]


def _two(case):
    z = matrix(case)
    other = matrix(case, 1)
    near = z.double() + (0.3 if case.kind != "constant" else 0) * other.double()
    return [z, near.to(z.dtype) if case.layout == "contiguous" and torch.isfinite(near.to(z.dtype)).all() else other]


def _probabilities(case, stream, shape=None):
    scores = matrix(Case(case.n, case.m, seed=case.seed), stream, shape, "float32")
    return scores.softmax(-1).to(DTYPES[case.dtype])


def _many(free, constants):
    def inputs(case):
        return [matrix(case, i) for i in range(free)] + [_probabilities(case, 100 + i) for i in range(constants)]

    return inputs


def _embeddings(count):
    return lambda case: [matrix(case, i) for i in range(count)]


def _resa(case):
    return [matrix(case), matrix(case, 1), _probabilities(case, 2, (case.n, case.n))]


def _moments(case):
    rng = np.random.default_rng([case.seed, 7])
    m = min(case.m, 64)
    a = rng.standard_normal((m, 2 * m)) * (1 if case.kind != "spread" else np.geomspace(1, 1e-2, m)[:, None])
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    return [torch.from_numpy(rng.standard_normal(m) / m).to(dtype), torch.from_numpy(a @ a.T / (2 * m * m)).to(dtype)]


def _cosines(case):
    similarity = torch.tanh(matrix(case, 0, None, "float32")).to(DTYPES[case.dtype])
    sizes = np.random.default_rng([case.seed, 3]).exponential(size=case.m)
    return [similarity, torch.from_numpy(sizes * case.m / sizes.sum()).to(torch.float32)]


def _places(case):
    shape = (case.n, 4, case.m)
    return [matrix(case, i, shape) for i in range(2)]


def _views(case):
    return [matrix(case, 0, (case.n, 2, case.m))]


def _labelled(case):
    labels = torch.arange(case.n) % 3
    return [matrix(case), labels[torch.randperm(case.n, generator=torch.Generator().manual_seed(case.seed))]]


def _labels_only(case):
    rng = np.random.default_rng([case.seed, 5])
    return [torch.from_numpy(rng.integers(0, min(case.m, 9), case.n)) for _ in range(2)]


def _seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def _directions(m, dtype, slices=32):
    draws = torch.randn(m, slices, generator=_seeded(), dtype=dtype).double().numpy()
    return draws / np.sqrt(np.square(draws).sum(0))


def _sliced(function):
    """The reference knows the directions: they are drawn, not computed."""
    return lambda x, c, dtype: function(x, c, _directions(x[0].shape[1], dtype))


def _moments_of(z):
    moments = wssl.metrics.Moments(z.shape[-1])
    for part in z.split(max(1, len(z) // 3)):
        moments.update(part)
    return torch.cat([moments.mean[None], moments.cov])


def _batches(metric, split=3):
    def call(*views):
        state = metric(views[0].shape[-1])
        for parts in zip(*(z.split(max(1, len(z) // split)) for z in views), strict=True):
            state.update(*parts)
        return state.compute()

    return call


def _centering(scores):
    centre = wssl.balance.Centering(scores.shape[-1], momentum=0.5)
    centre.update(scores)
    return centre(scores)


def _balancer(similarities):
    layer = wssl.balance.ClusterBalancer(similarities.shape[-1], momentum=0.5)
    ok = similarities.ndim == 2 and similarities.is_floating_point() and similarities.numel()
    layer.update(similarities.argmax(-1) if ok else torch.zeros(1, dtype=torch.long))
    return layer(similarities)


def _balancer_reference(x, c):
    votes = np.bincount(c[0].argmax(1), minlength=c[0].shape[1]) / len(c[0])
    return ref.balanced([x[0], (0.5 + 0.5 * votes * c[0].shape[1])], c)


def _kmeans(z):
    """Mean cosine of a row with its nearest centroid; as many clusters as there are surely directions."""
    centroids = wssl.balance.spherical_kmeans(z, 2, generator=_seeded())
    rows = torch.nn.functional.normalize(z.double(), dim=1)
    return torch.cat([torch.linalg.vector_norm(centroids, dim=1).double(), (rows @ centroids.double().T).amax(1)])


def _diagnosed(z):
    return torch.tensor(wssl.metrics.diagnose(z).values["W2"].value, dtype=torch.float64)


def _followed(z):
    history = wssl.metrics.follow([("first", z), ("second", z)]).history
    return torch.tensor([stage["W2"] for stage in history], dtype=torch.float64)


def _scores_of(z, labels):
    return torch.tensor(wssl.metrics.cluster_scores(z, labels).silhouette, dtype=torch.float64)


def _summary(labels, _):
    return torch.tensor(list(wssl.metrics.size_summary(labels, 9).values()), dtype=torch.float64)


def _summary_reference(x, c):
    counts = np.bincount(np.asarray(x[0], int), minlength=9) / len(x[0])
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum() / math.log(9)
    return np.array([(counts == 0).mean(), entropy, abs(counts - 1 / 9).sum() / 2, 9 * counts.max(), 9 * counts.min()])


def _partition(a, b):
    return torch.tensor(wssl.metrics.partition_scores(a, b)["purity"], dtype=torch.float64)


def _partition_reference(x, c):
    a, b = (np.asarray(labels, int) for labels in x)
    return sum(np.bincount(b[a == each]).max() for each in np.unique(a)) / len(a)


def _softness(assignment):
    return torch.tensor(wssl.balance.assignment_softness(assignment)["support"], dtype=torch.float64)


def _softness_reference(x, c):
    return np.exp(-ref.xlogy(x[0], x[0]).sum(1)).mean()


def _rotated(z):
    side = math.isqrt(z.shape[1])
    images = z[:, : side * side].reshape(len(z), 1, side, side)
    return wssl.losses.rotations(images)[0]


def _rotated_reference(x, c):
    side = math.isqrt(x[0].shape[1])
    images = x[0][:, : side * side].reshape(len(x[0]), 1, side, side)
    return np.concatenate([np.rot90(images, turn, (2, 3)) for turn in range(4)])


def _tiles(case):
    return [matrix(case, 0, (case.n, 1, 9, 9 + case.m % 5))]


def _cut_reference(x, c):
    height, width = (side // 3 for side in x[0].shape[2:])
    left = (x[0].shape[3] - 3 * width) // 2
    cells = [(i, j) for i in range(3) for j in range(3)]
    return np.stack(
        [x[0][:, :, i * height : (i + 1) * height, left + j * width : left + (j + 1) * width] for i, j in cells], 1
    )


@dataclass(frozen=True)
class Subject:
    """What one public function promises."""

    call: Callable[..., Tensor]
    reference: Callable | None = None  # (arrays, the same as constants) -> number or array, float64
    inputs: Callable[[Case], list[Tensor]] = _one
    free: int = 0  # The first so many inputs get a gradient; 0: nothing does
    reach: dict | None = None  # Exponents at which the value has to be right; None: ANY
    low: float = -math.inf
    high: float | Callable[[int, int], float] = math.inf  # By n and m
    least: Callable[[int, int], bool] = lambda n, m: n >= 1  # Sizes that are not refused
    posed: Callable[[Case], bool] = lambda case: (
        True
    )  # Where the value is determined by the input; elsewhere only its range counts
    refuses: Callable[[Case], bool] = lambda case: False  # Kinds that may be refused
    wide: bool = False  # Computed in float64 whatever the input's type
    single: bool = False  # Remembers in float32 whatever the input's type
    floor: float = 64  # Rounding units of the value (or of `size`) that an exact input may cost
    size: float | Callable[[int, int], float] = 1.0  # Size of the terms that are added up; 0: that of the value
    slack: Callable | None = None  # (case, arrays, eps) -> a documented error beyond rounding
    scale: bool = False  # The same for any multiple of the embeddings
    rows: bool = True  # The same for rows in another order
    twice: bool | None = (
        True  # A second derivative is right; False: it is refused; None: constants are made of the same embeddings, and none is defined
    )
    vmap: str = ""  # Why `torch.func.vmap` cannot; "": it can
    func: str = ""  # Why `torch.func.grad` and `jacrev` cannot; "": they can
    compiles: bool = True  # In one graph; not with a generator made inside of it
    cells: int = 2**16  # Most entries of an input
    work: int = 2**24  # Most n m min(n, m)
    most: int = 4096  # Rows
    columns: int = 4096  # Most m, where the result is m x m
    gradients: Callable[[Case], bool] = lambda case: case.kind == "plain" and case.layout != "expanded"
    nan: bool = True  # NaN or infinite entries are refused, or give NaN


def _at_least(rows, columns=1):
    return lambda n, m: n >= rows and m >= columns


def _lost_roots(case, arrays, eps):
    """What W2 loses where an eigenvalue of the Gram matrix drowns in the rounding of the largest one."""
    m = arrays[0].shape[1]
    roots = np.linalg.svd(ref.centred(ref.unit(arrays[0])), compute_uv=False) / math.sqrt(len(arrays[0]))
    level = 16 * math.sqrt(eps) * roots.max(initial=0)
    lost = level * ((roots < level).sum() + 1)  # and the direction that centring takes
    return 2 / math.sqrt(m) * lost


def _lost_root_of_square(case, arrays, eps):
    lost = _lost_roots(case, arrays, eps) + 64 * eps
    return min(math.sqrt(lost), lost / max(ref.w2(arrays[:1], None), 1e-30))


def _lost_in_sums(case, arrays, eps):
    """The same about the origin: what drowns, drowns in the rounding of the mean length."""
    square = 2 / math.sqrt(case.m) * min(case.m, 16) * 8 * math.sqrt(eps)
    return min(math.sqrt(square), square / max(ref.w2(arrays[:1], None), 1e-30))


def _lost_shares(case, arrays, eps):
    """What an effective rank loses with singular values under the root of rounding."""
    roots = np.sqrt(ref.spectrum(arrays[0], False, False)[0])
    share = np.minimum(roots / (roots.sum() or 1), 8 * math.sqrt(eps * min(arrays[0].shape)))
    return 2 * ref.rankme(arrays, None) * -ref.xlogy(share, share)[share < 1e-5].sum()


def _resolution(case, arrays, eps):
    """Distances under the rounding of the rows count as 0."""
    return {"float16": 1e-5, "bfloat16": 1e-3}.get(case.dtype, 1e-9)


def _repeats(case):
    """Kinds in which so many rows may be equal that no neighbour is left."""
    return case.kind not in ("plain", "cone", "dead columns") or case.layout == "expanded" or case.m < 3


def _all_differ(case):
    """Rows that are told apart in every type."""
    return not _repeats(case) and case.kind == "plain" and case.dtype in ("float64", "float32")


def _close(case, arrays, eps):
    """Squared distances come from products of the rows about their mean."""
    return 1e3 * eps * float(np.abs(arrays[0]).max())


def _near(case, arrays, eps):
    """The same, as a part of a distance, in an estimate of at most a few times m."""
    return 1e5 * eps * case.m


def _lost_digits(case, arrays, eps):
    """Digits of the smallest eigenvalue that the largest one leaves."""
    values = ref.spectrum(arrays[0], True, False)[0]
    return 64 * eps * values[0] / min(values[values > 0], default=1)


def _lost_within(case, arrays, eps):
    """Digits of `delta` that the variance within an image leaves."""
    z = arrays[0]
    within = np.square(z - z.mean(1, keepdims=True)).sum() / (2 * len(z))
    return 64 * eps * (1 + within / 1e-4) * ref.discriminant(arrays, None).max(initial=1)


def _score_size(case, arrays, eps):
    """Rounding of the scores over the temperature, of which a cross-entropy is a difference."""
    return 64 * eps * (1 + max(np.abs(x).max() for x in arrays) / 0.1)


def _lost_beside(case, arrays, eps):
    """With fewer rows than columns the diagonal is subtracted, not left out."""
    if case.n >= case.m:
        return 0.0
    return 64 * eps * sum(np.square(np.square(ref.centred(z)).sum(0) / (case.n - 1)).sum() for z in arrays) / case.m


def _w2(squared=False, free=1, **options):
    def call(z):
        return wssl.metrics.wasserstein_uniformity(z, squared=squared, **options)

    return Subject(
        call, lambda x, c: ref.w2(x, c, squared=squared), free=free, low=0, high=2 if squared else math.sqrt(2),
        floor=256, slack=_lost_roots if squared else _lost_root_of_square, scale=True, twice=False,
        func="the gradient of W2 comes from an eigensolver in numpy and torch, outside of torch.func",
        vmap="looks for NaN, which is a question to the data",
        gradients=lambda case: case.kind == "plain" and case.layout != "expanded" and (case.n > 2 * case.m or case.m > 2 * case.n),
    )  # fmt: skip


L, M, B = wssl.losses, wssl.metrics, wssl.balance
_LOOKS = "looks for NaN, which is a question to the data"
_OWN = "a custom autograd.Function"


def _log_candidates(n, m):
    return math.log(2 * n) + 4 + 1


SUBJECTS = {
    # --- metrics
    "alignment": Subject(M.alignment, ref.alignment, _two, 2, low=0, high=4, scale=True, func=""),
    "alignment: alpha 1": Subject(lambda a, b: M.alignment(a, b, alpha=1), lambda x, c: ref.alignment(x, c, 1), _two, 2, low=0, high=2, scale=True),
    "alignment: raw": Subject(lambda a, b: M.alignment(a, b, normalize=False), lambda x, c: ref.alignment(x, c, normalize=False), _two, 2, SQUARES, low=0, size=0),
    "uniformity": Subject(M.uniformity, ref.uniformity, free=1, low=-8, high=0, least=_at_least(2), scale=True, twice=False, work=2**22, vmap=_LOOKS, func=_OWN, size=8, most=512),
    "uniformity: sharp": Subject(lambda z: M.uniformity(z, t=50), lambda x, c: ref.uniformity(x, c, 50), free=1, low=-200, high=0, least=_at_least(2), scale=True, twice=False, work=2**22, vmap=_LOOKS, func=_OWN, size=200, most=512),
    "wasserstein_uniformity": _w2(),
    "wasserstein_uniformity: squared": _w2(squared=True),
    "wasserstein_uniformity: metric": _w2(free=0),
    "uniformity_zscore": Subject(M.uniformity_zscore, ref.zscore, least=_at_least(32), wide=True, scale=True, slack=lambda case, arrays, eps: _lost_roots(case, arrays, eps) / ref.null_law(*arrays[0].shape)[1], size=lambda n, m: 1 / ref.null_law(n, m)[1], floor=1e9, work=2**22, most=512),
    "null_distribution": Subject(lambda z: torch.tensor(M.null_distribution(*z.shape), dtype=torch.float64), lambda x, c: np.array(ref.null_law(*x[0].shape)), least=_at_least(2), reach=COSINES, wide=True, floor=2e10, nan=False),
    "uniformity_floor": Subject(lambda z: torch.tensor(M.uniformity_floor(*z.shape), dtype=torch.float64), None, least=_at_least(2), reach=COSINES, wide=True, low=0, high=math.sqrt(2), nan=False),
    "live_fraction": Subject(lambda z: M.live_fraction(2**0.5 * torch.sigmoid(z.double())), lambda x, c: (1 - 1 / (1 + np.exp(-x[0])) ** 2) ** 2, low=0, high=1, reach=COSINES, rows=False, nan=False),
    "gaussian_w2": Subject(M.gaussian_w2, ref.gaussian_w2, _moments, 2, COSINES, low=0, floor=256, twice=False),
    "gaussian_kl": Subject(M.gaussian_kl, ref.gaussian_kl, _moments, 2, COSINES, low=0, floor=256, size=lambda n, m: m, twice=False),
    "bhattacharyya": Subject(M.bhattacharyya, ref.bhattacharyya, _moments, 2, COSINES, low=0, floor=256, size=lambda n, m: m, twice=False),
    "singular_spectrum": Subject(M.singular_spectrum, ref.singular_spectrum, low=0, high=1, wide=True, scale=True, floor=512),
    "rankme": Subject(M.rankme, ref.rankme, low=0, high=min, wide=True, scale=True, slack=_lost_shares, floor=512),
    "alpha_req": Subject(M.alpha_req, ref.alpha_req, wide=True, scale=True, slack=_lost_digits),
    "stable_rank": Subject(M.stable_rank, ref.stable_rank, low=0, high=min, wide=True, scale=True),
    "participation_ratio": Subject(M.participation_ratio, ref.participation_ratio, low=0, high=min, wide=True, scale=True),
    "embedding_std": Subject(M.embedding_std, ref.embedding_std, low=0, high=lambda n, m: m**-0.5, wide=True, scale=True),
    "lidar": Subject(M.lidar, ref.lidar, _views, low=0, high=min, least=_at_least(2), reach=SQUARES, wide=True, columns=128, slack=_lost_within),
    "discriminant_spectrum": Subject(M.discriminant_spectrum, ref.discriminant, _views, low=0, least=_at_least(2), reach=SQUARES, wide=True, rows=False, columns=128, slack=_lost_within),
    "silhouettes": Subject(M.silhouettes, lambda x, c: ref.silhouettes(x[0], c[1].astype(int)), _labelled, low=-1, high=1, least=_at_least(2), wide=True, scale=True, rows=False, work=2**20, most=512, slack=_resolution),
    "cluster_scores": Subject(_scores_of, lambda x, c: ref.silhouettes(x[0], c[1].astype(int)).mean(), _labelled, low=-1, high=1, least=_at_least(3), wide=True, scale=True, work=2**20, most=512, slack=_resolution),
    "partition_scores": Subject(_partition, _partition_reference, _labels_only, low=0, high=1, reach=COSINES, wide=True, nan=False),
    "relative_cluster_sizes": Subject(lambda a, b: M.relative_cluster_sizes(a, 9), lambda x, c: np.bincount(x[0].astype(int), minlength=9) * 9 / len(x[0]), _labels_only, low=0, high=9, reach=COSINES, wide=True, nan=False),
    "size_summary": Subject(_summary, _summary_reference, _labels_only, low=0, high=9, reach=COSINES, wide=True, nan=False),
    "Moments": Subject(_moments_of, lambda x, c: np.concatenate([x[0].mean(0)[None], np.atleast_2d(np.cov(x[0].T, bias=True))]), reach=SQUARES, size=0, columns=256),
    "Alignment": Subject(_batches(lambda m: M.Alignment()), ref.alignment, _two, low=0, high=4, scale=True),
    "Uniformity": Subject(_batches(lambda m: M.Uniformity()), ref.uniformity, low=-8, high=0, least=_at_least(2), scale=True, work=2**22, size=8, most=512),
    "WassersteinUniformity": Subject(_batches(lambda m: M.WassersteinUniformity(m)), ref.w2, low=0, high=math.sqrt(2), scale=True, wide=True, slack=_lost_in_sums, columns=256),
    "RankMe": Subject(_batches(lambda m: M.RankMe(m)), ref.rankme, low=0, high=min, wide=True, scale=True, slack=_lost_shares, floor=512, columns=256),
    "rows_needed": Subject(lambda z: torch.tensor(float(M.rows_needed(*z.shape))), lambda x, c: float(max(32, math.ceil(1.1 * x[0].shape[1]) + 1, len(x[0]) + 1)), reach=COSINES, wide=True, nan=False),
    "isotropic_dimension": Subject(lambda z: torch.tensor(M.isotropic_dimension(max(len(z), 12), max(z.shape[1], 2))), None, low=0, reach=COSINES, wide=True, nan=False),
    "reference_values": Subject(lambda z: torch.tensor(M.reference_values(*z.shape)[0].healthy), None, low=0, high=math.sqrt(2), least=_at_least(3), reach=COSINES, wide=True, nan=False),
    "mle_dimension": Subject(lambda z: torch.tensor(M.mle_dimension(z, 3)), ref.mle_dimension, low=0, least=_at_least(4), refuses=_repeats, posed=_all_differ, scale=True, work=2**20, most=512, slack=_near),
    "two_nn": Subject(lambda z: torch.tensor(M.two_nn(z)), ref.two_nn, low=0, least=_at_least(3), refuses=_repeats, posed=_all_differ, scale=True, work=2**20, most=512, slack=_near),
    "nearest_rows": Subject(lambda z: M.nearest_rows(z, 1).distances, ref.nearest_distances, low=0, least=_at_least(2), refuses=_repeats, posed=_all_differ, rows=False, size=0, most=512, slack=_close),
    "hubness": Subject(lambda z: torch.tensor(M.hubness(z, 1)[1]), None, low=0, high=1, least=_at_least(2), refuses=_repeats, scale=True, wide=True, most=512),
    "class_ranks": Subject(lambda a, b: torch.tensor([float(one.rows) for one in M.class_ranks(a, b)]), lambda x, c: np.bincount(c[1].astype(int)).astype(float), _labelled, low=0, wide=True, rows=False, most=512),
    "collapsed_share": Subject(lambda a, b: torch.tensor(M.collapsed_share(M.class_ranks(a, b)) or 0.0), None, _labelled, low=0, high=1, scale=True, wide=True, most=512),
    "diagnose": Subject(_diagnosed, ref.w2, low=0, high=math.sqrt(2), least=_at_least(2), cells=2**12, reach=BELOW_1E15, slack=_lost_root_of_square),
    "follow": Subject(_followed, lambda x, c: np.full(2, ref.w2(x, c)), low=0, high=math.sqrt(2), least=_at_least(2), cells=2**10, reach=BELOW_1E15, slack=_lost_root_of_square),
    # --- balance
    "sinkhorn_knopp": Subject(B.sinkhorn_knopp, lambda x, c: ref.sinkhorn(x[0]), low=0, high=1, rows=False),
    "self_assignment": Subject(B.self_assignment, ref.self_assignment, _two, low=0, high=1, scale=True, rows=False, most=512),
    "assignment_softness": Subject(lambda z: _softness(z), _softness_reference, lambda case: [_probabilities(case, 0, (case.n, case.n))], low=1, high=lambda n, m: n, reach=COSINES, most=512),
    "Centering": Subject(_centering, lambda x, c: x[0] - c[0].mean(0) / 2, free=1, size=0, rows=False, single=True, reach=SINGLE, vmap="moves its buffer in place"),
    "balanced": Subject(B.balanced, ref.balanced, _cosines, 1, COSINES, low=-1, high=1, rows=False, single=True),
    "ClusterBalancer": Subject(_balancer, _balancer_reference, lambda case: _cosines(case)[:1], 1, COSINES, low=-1, high=1, rows=False, single=True, vmap="moves its buffer in place"),
    "spherical_kmeans": Subject(_kmeans, None, low=-1, high=1, least=_at_least(2), refuses=lambda case: case.kind != "plain" or case.layout == "expanded" or case.m == 1 or case.dtype == "float16" and case.exponent < 0, rows=False),
    # --- losses
    "nt_xent": Subject(L.nt_xent, ref.nt_xent, _two, 2, low=0, high=_log_candidates, scale=True, work=2**22, most=512),
    "info_nce": Subject(L.info_nce, ref.info_nce, _two, 2, low=0, high=lambda n, m: math.log(n) + 10, scale=True, work=2**22, most=512),
    "info_nce: negatives": Subject(L.info_nce, ref.info_nce, _embeddings(3), 3, low=0, scale=True, work=2**22, most=512),
    "barlow_twins_loss": Subject(L.barlow_twins_loss, ref.barlow, _two, 2, low=0, size=lambda n, m: m, columns=512),
    "vicreg_loss": Subject(L.vicreg_loss, ref.vicreg, _two, 2, FOURTH, low=0, least=_at_least(2), columns=512, slack=_lost_beside),
    "vicreg_terms": Subject(lambda a, b: torch.stack(L.vicreg_terms(a, b)), ref.vicreg_terms, _two, 2, FOURTH, low=0, least=_at_least(2), columns=512, slack=_lost_beside),
    "w_mse_loss": Subject(L.w_mse_loss, ref.w_mse, _two, 2, low=0, high=4, least=lambda n, m: n > m, posed=lambda case: case.kind in ("plain", "zero row", "cone") and case.n > 2 * case.m, scale=True, columns=512),
    "cholesky_whiten": Subject(L.cholesky_whiten, ref.cholesky_whiten, free=1, least=lambda n, m: n > m, posed=lambda case: case.kind in ("plain", "zero row", "cone") and case.n > 2 * case.m, scale=True, rows=False, columns=512),
    "iter_norm": Subject(L.iter_norm, ref.iter_norm, free=1, least=_at_least(2), scale=True, rows=False, columns=512),
    "intl_loss": Subject(L.intl_loss, ref.intl, _two, 2, low=0, least=_at_least(2), scale=True, columns=512),
    "zero_fcl_loss": Subject(L.zero_fcl_loss, ref.zero_fcl, _two, 2, low=0, size=lambda n, m: m, columns=512, twice=None),
    "zero_icl_loss": Subject(L.zero_icl_loss, ref.zero_icl, _two, 2, low=0, size=lambda n, m: n, most=512, twice=None),
    "byol_loss": Subject(L.byol_loss, ref.byol, _two, 1, low=0, high=4, scale=True),
    "simsiam_loss": Subject(L.simsiam_loss, ref.simsiam, _two, 1, low=-1, high=1, scale=True),
    "coding_rate": Subject(L.coding_rate, ref.coding_rate, free=1, low=0, high=lambda n, m: m / 2 * math.log(3), scale=True, size=lambda n, m: min(n, m)),
    "simdino_loss": Subject(lambda *z: L.simdino_loss(z[:3], z[3:]), ref.simdino, _embeddings(5), 3, scale=True, size=lambda n, m: 1 + (m + n) / max(m, n), floor=512),
    "swav_loss": Subject(L.swav_loss, ref.swav, _two, 2, low=0, size=0, twice=None, slack=_score_size),
    "dino_loss": Subject(lambda *z: L.dino_loss(z[:3], z[3:]), ref.dino, _many(3, 2), 3, low=0, size=0, slack=_score_size),
    "excb_loss": Subject(lambda *z: L.excb_loss(z[:2], z[2:5], z[5:]), ref.excb, _many(5, 2), 5, low=0, size=0, slack=_score_size),
    "resa_loss": Subject(L.resa_loss, ref.resa, _resa, 2, low=0, high=lambda n, m: math.log(n) + 5, scale=False, work=2**22, most=512, rows=False),
    "soft_cross_entropy": Subject(lambda s, t: L.soft_cross_entropy(s, t, 0.1), lambda x, c: ref.cross_entropy(x[0], c[1], 0.1), _many(1, 1), 1, low=0, size=0, rows=False, slack=_score_size),
    "sigreg_loss": Subject(lambda z: L.sigreg_loss(z, 32, generator=_seeded()), _sliced(ref.sigreg), free=1, low=0, posed=lambda case: case.exponent < 3, twice=False, func=_OWN, vmap="draws its directions from a generator", compiles=False),
    "sliced_w2_loss": Subject(lambda z: L.sliced_w2_loss(z, 32, generator=_seeded()), _sliced(ref.sliced_w2), free=1, low=0, scale=True, vmap="draws its directions from a generator", size=lambda n, m: m, compiles=False),
    "visreg_loss": Subject(lambda z: L.visreg_loss(z, 32, generator=_seeded()), _sliced(ref.visreg), free=1, low=0, reach=SQUARES, posed=lambda case: case.exponent > -5 and case.dtype != "float16", vmap="draws its directions from a generator", twice=None, compiles=False),
    "w2_of_views": Subject(L.w2_of_views, lambda x, c: ref.w2([np.concatenate(x)], c), _two, 2, low=0, high=math.sqrt(2), slack=lambda case, arrays, eps: _lost_root_of_square(case, [np.concatenate(arrays)], eps), scale=True, twice=False, func=_OWN, vmap=_LOOKS, gradients=lambda case: False),
    "lu_of_views": Subject(L.lu_of_views, lambda x, c: (ref.uniformity(x[:1], c) + ref.uniformity(x[1:], c)) / 2, _two, 2, low=-8, high=0, least=_at_least(2), scale=True, twice=False, work=2**22, func=_OWN, vmap=_LOOKS, size=8, most=512),
    "regularize": Subject(lambda a, b: L.regularize("lu", 1.0, a, b), lambda x, c: (ref.uniformity(x[:1], c) + ref.uniformity(x[1:], c)) / 2, _two, 2, low=-8, high=0, least=_at_least(2), scale=True, twice=False, work=2**22, func=_OWN, vmap=_LOOKS, size=8, most=512),
    "WassersteinUniformityLoss": Subject(lambda *z: L.WassersteinUniformityLoss(2.0)(*z), lambda x, c: 2 * ref.w2([np.concatenate(x)], c), _two, 2, low=0, high=2 * math.sqrt(2), slack=lambda case, arrays, eps: 2 * _lost_root_of_square(case, [np.concatenate(arrays)], eps), scale=True, twice=False, func=_OWN, vmap=_LOOKS, gradients=lambda case: False),
    "local_vicreg": Subject(lambda a, b: L.local_vicreg(a, b, matches=2), ref.local_vicreg, _places, 2, FOURTH, low=0, least=_at_least(2), posed=lambda case: case.kind in ("plain", "cone", "zero row") and case.m >= 8 and case.exponent > -15, columns=512),
    "task_loss": Subject(lambda s, t: L.task_loss(s, t)[0], ref.task, _many(1, 1), 1, low=0, size=0, slack=_score_size),
    "standardize_tiles": Subject(L.standardize_tiles, ref.standardize_tiles, _tiles, 1, SQUARES),
    "rotations": Subject(_rotated, _rotated_reference, floor=0, size=0, rows=False, wide=True, nan=False),
    "cut_tiles": Subject(lambda x: L.cut_tiles(x, 0), _cut_reference, _tiles, floor=0, size=0, rows=False, wide=True, nan=False),
    "permutation_set": Subject(lambda z: L.permutation_set(2 + z.shape[1] % 1500).double().sort(1).values, lambda x, c: np.tile(np.arange(9.0), (2 + x[0].shape[1] % 1500, 1)), reach=COSINES, nan=False),
}  # fmt: skip

# public, and nothing to feed numbers to
RESULTS = {"ClusterScores": "what cluster_scores returns", "Diagnosis": "what diagnose returns"}
RESULTS |= {
    "W2Moments": "what w2_moments returns",
    "w2_moments": "wasserstein_uniformity reads it",
    "null_law": "old name",
}
RESULTS |= {
    "ClassRank": "what class_ranks returns",
    "Hubness": "what hubness returns",
    "Neighbours": "what nearest_rows returns",
}
RESULTS |= {"Reference": "what reference_values returns"}
RESULTS |= {"collapse_values": "constants of sizes, no tensors", "explain_loss": "a sentence about a number"}


def missing():
    """Public names of the three packages that no line of the table names."""
    public = {*wssl.metrics.__all__, *wssl.balance.__all__, *wssl.losses.__all__}
    return sorted(public - {name.split(":")[0] for name in SUBJECTS} - set(RESULTS))
