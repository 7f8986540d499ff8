"""Losses, forward and backward in float32, beside lightly's, solo-learn's and POT's; no side is compiled."""

import importlib
import sys
import types
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from tests.bench import uniformity as forms
from tests.bench.compare import Case, Peer, table, with_gradient
from wssl.balance import Centering
from wssl.core.rows import normalize_rows
from wssl.losses import (
    barlow_twins_loss,
    byol_loss,
    dino_loss,
    info_nce,
    lu_of_views,
    nt_xent,
    sigreg_loss,
    simsiam_loss,
    swav_loss,
    vicreg_loss,
)
from wssl.metrics import alignment, uniformity, wasserstein_uniformity

SINGULAR = "the root of a singular covariance has no gradient: the peer's is what rounding leaves of it, ours leaves the dead directions alone"
BATCHNORM = "the peer standardises its columns in one kernel, PyTorch's BatchNorm; ours are several operators, which also sum over processes and refuse to overflow"
PAIRS = (
    "sums in float64 and a gradient made on the way forward, in chunks, cost a fixed part that few rows do not repay"
)
SMALL = "the questions asked of an input (shape, finite, rows of length 0) cost some tens of microseconds a call, which count at this size only"
QUEUE = "ours brings the rows of the queue to unit length at every call, the peer trusts that they are"


def draw(n, m, seed=0, spread=1.0):
    return spread * torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def two_views(n, m):
    z = draw(n, m)
    return z, z + 0.5 * draw(n, m, 1)


def solo(module):
    """A module of solo-learn, whose package cannot be imported as a whole: it wants Lightning 1.4."""
    if "solo" not in sys.modules:
        package = types.ModuleType("solo")
        package.__path__ = list(find_spec("solo").submodule_search_locations)
        sys.modules["solo"] = package
        for part in ("losses", "utils"):
            below = types.ModuleType(f"solo.{part}")
            below.__path__ = [f"{package.__path__[0]}/{part}"]
            sys.modules[f"solo.{part}"] = below
    return importlib.import_module(f"solo.{module}")


def of_lightly(name, **options):
    return getattr(importlib.import_module("lightly.loss"), name)(**options)


def wasserstein(n, m):
    z = draw(n, m)

    def bures_wasserstein():
        from ot.gaussian import bures_wasserstein_distance

        target = torch.zeros(m), torch.eye(m) / m

        def loss(z):
            z = F.normalize(z)
            mean = z.mean(0)
            return bures_wasserstein_distance(target[0], mean, target[1], (z - mean).T @ (z - mean) / n)

        return with_gradient(loss, z)

    peers = [Peer("POT bures_wasserstein_distance", "ot", bures_wasserstein, SINGULAR if n <= m else "")]
    if n > m:  # where the rank is lower its gradient is noise (the topic w2 has its times)
        paper = "the paper's code, retyped (general eigensolver)"
        peers.append(Peer(paper, "torch", lambda: with_gradient(forms.general_eig, z)))
    ours = with_gradient(wasserstein_uniformity, z)
    yield Case("W2", f"{n} x {m}", ours, peers, 3 * n * m * min(n, m), 8 * n * m)


def pairs(n, m):
    z1, z2 = two_views(n, m)
    bound = 3 * n * n * m, 8 * n * m
    pdist = Peer("torch.pdist", "torch", lambda: with_gradient(forms.pdist_uniformity, z1), reason=PAIRS)
    yield Case("L_U", f"{n} x {m}", with_gradient(uniformity, z1), [pdist], *bound)

    def both(z1, z2):
        return alignment(z1, z2) + lu_of_views(z1, z2)

    def hypersphere():
        return with_gradient(importlib.import_module("lightly.loss.hypersphere_loss").HypersphereLoss(t=2.0), z1, z2)

    sphere = Peer("lightly HypersphereLoss, t = 2", "lightly", hypersphere)
    yield Case(
        "alignment + L_U of two views", f"{n} x {m}", with_gradient(both, z1, z2), [sphere], 2 * bound[0], 2 * bound[1]
    )


def contrastive(n, m, temperature=0.2):
    views = two_views(n, m)
    peers = [
        Peer(
            "lightly NTXentLoss",
            "lightly",
            lambda: with_gradient(of_lightly("NTXentLoss", temperature=temperature), *views),
        ),
        Peer(
            "solo-learn simclr_loss_func",
            "solo",
            lambda: with_gradient(
                lambda a, b: solo("losses.simclr").simclr_loss_func(a, b, temperature=temperature), *views
            ),
        ),
    ]
    ours = with_gradient(lambda a, b: nt_xent(a, b, temperature), *views)
    yield Case("NT-Xent", f"2 x {n} x {m}", ours, peers, 3 * (2 * n) ** 2 * m, 16 * n * m)


def queue(n, m, k=65536, temperature=0.2):
    q, key = two_views(n, m)
    key = normalize_rows(key)
    bank = normalize_rows(draw(k, m, 2))
    columns = bank.T.contiguous()

    def of_solo():  # which trusts that all rows are of unit length; its method normalises what its network gives
        loss = solo("losses.moco").moco_loss_func
        return with_gradient(lambda q: loss(F.normalize(q), key, columns, temperature=temperature), q)

    ours = with_gradient(lambda q: info_nce(q, key, bank, temperature), q)
    peers = [Peer("solo-learn moco_loss_func", "solo", of_solo, reason=QUEUE)]
    yield Case(f"InfoNCE, queue of {k:,}", f"{n} x {m}", ours, peers, 4 * n * k * m, 4 * k * m + 8 * n * m)


def barlow(n, m):
    views = two_views(n, m)
    peers = [
        Peer(
            "lightly BarlowTwinsLoss",
            "lightly",
            lambda: with_gradient(of_lightly("BarlowTwinsLoss"), *views),
            reason=BATCHNORM,
        ),
        Peer(
            "solo-learn barlow_loss_func",
            "solo",
            lambda: with_gradient(
                lambda a, b: solo("losses.barlow").barlow_loss_func(a, b, lamb=5e-3, scale_loss=1.0), *views
            ),
        ),
    ]
    ours = with_gradient(lambda a, b: barlow_twins_loss(a, b, lambd=5e-3), *views)
    yield Case("Barlow Twins", f"2 x {n} x {m}", ours, peers, 6 * n * m * min(n, m), 16 * n * m)


def vicreg(n, m):
    views = two_views(n, m)
    peers = [
        Peer("lightly VICRegLoss", "lightly", lambda: with_gradient(of_lightly("VICRegLoss"), *views)),
        Peer(
            "solo-learn vicreg_loss_func, variance weight halved",
            "solo",
            lambda: with_gradient(
                lambda a, b: solo("losses.vicreg").vicreg_loss_func(a, b, var_loss_weight=12.5), *views
            ),
        ),
    ]
    yield Case("VICReg", f"2 x {n} x {m}", with_gradient(vicreg_loss, *views), peers, 6 * n * m * min(n, m), 16 * n * m)


def scores(n, k):
    return [normalize_rows(z) @ normalize_rows(draw(k, 128, 9)).T for z in two_views(n, 128)]


def swav(n, k):
    views = scores(n, k)

    def of_the_peer():
        loss = of_lightly("SwaVLoss")
        return with_gradient(lambda a, b: loss([a, b], []), *views)

    def of_solo():
        codes, loss = solo("utils.sinkhorn_knopp").SinkhornKnopp(), solo("losses.swav").swav_loss_func
        return with_gradient(lambda a, b: loss([a, b], [codes(x.detach()) for x in (a, b)]), *views)

    peers = [
        Peer("lightly SwaVLoss", "lightly", of_the_peer),
        Peer("solo-learn SinkhornKnopp + swav_loss_func", "solo", of_solo),
    ]
    yield Case("SwAV", f"2 x {n} x {k}", with_gradient(swav_loss, *views), peers, 40 * n * k, 16 * n * k)


def dino(n, k):
    student, teacher = scores(n, k), [x.flip(0) for x in scores(n, k)]

    centering = Centering(k)

    def ours(a, b):
        both = torch.cat(teacher)
        targets = (centering(both) / 0.04).softmax(1)
        centering.update(both)
        return dino_loss([a, b], targets.chunk(2))

    def of_the_peer():
        loss = of_lightly("DINOLoss", output_dim=k)
        return with_gradient(lambda a, b: loss(teacher, [a, b]), *student)

    def of_solo():
        loss = solo("losses.dino").DINOLoss(k, 0.04, 0.04, 0, 100)
        return with_gradient(lambda a, b: loss(torch.cat([a, b]), torch.cat(teacher)), *student)

    peers = [
        Peer("lightly DINOLoss", "lightly", of_the_peer),
        Peer("solo-learn DINOLoss", "solo", of_solo),
    ]
    yield Case("DINO with its centre", f"2 x {n} x {k}", with_gradient(ours, *student), peers, 20 * n * k, 24 * n * k)


def prediction(n, m):
    p, z = two_views(n, m)

    def of_the_peer():
        loss = of_lightly("NegativeCosineSimilarity")
        return with_gradient(lambda p: loss(p, z), p)

    def of_solo():
        loss = solo("losses.byol").byol_loss_func
        return with_gradient(lambda p: loss(p, z), p)

    cosine = Peer("lightly NegativeCosineSimilarity", "lightly", of_the_peer, reason=SMALL)
    of_solo = Peer("solo-learn byol_loss_func", "solo", of_solo, reason=SMALL)
    bound = 6 * n * m, 12 * n * m
    yield Case("SimSiam", f"{n} x {m}", with_gradient(lambda p: simsiam_loss(p, z), p), [cosine], *bound)
    yield Case("BYOL", f"{n} x {m}", with_gradient(lambda p: byol_loss(p, z), p), [of_solo], *bound)


def sketched(n, m, slices):
    z = draw(n, m)

    def seeded(loss):
        def run(z):
            torch.manual_seed(0)
            return loss(z)

        return run

    def of_the_peer():
        regularizer = importlib.import_module("lightly.loss.lejepa_loss").SIGReg(num_vectors=slices)
        return with_gradient(seeded(regularizer), z)

    ours = with_gradient(seeded(lambda z: sigreg_loss(z, slices)), z)
    bound = 2 * 3 * n * m * slices + 4 * 17 * n * slices, 8 * n * m
    yield Case(f"SIGReg, {slices} slices", f"{n} x {m}", ours, [Peer("lightly SIGReg", "lightly", of_the_peer)], *bound)


SIZES = {
    wasserstein: [(256, 128), (512, 256), (1024, 512), (256, 1024)],
    pairs: [(256, 128), (512, 256), (1024, 512)],
    contrastive: [(256, 128), (512, 128), (1024, 256)],
    queue: [(256, 128)],
    barlow: [(256, 512), (256, 2048), (1024, 2048), (256, 8192)],
    vicreg: [(256, 512), (256, 2048), (1024, 2048), (256, 8192)],
    swav: [(256, 3000), (1024, 3000)],
    dino: [(256, 4096), (64, 65536)],
    prediction: [(256, 256), (1024, 2048)],
    sketched: [(256, 128, 256), (512, 512, 1024)],
}


def measure(ceiling, repeats=9, budget=2.0):
    """Rows: one a loss, a size and a peer."""
    cases = (case for family, sizes in SIZES.items() for size in sizes for case in family(*size))
    yield from table(cases, ceiling, repeats, budget)
