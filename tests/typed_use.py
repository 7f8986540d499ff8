# pyright: basic
"""How callers use the library, for a type checker (`make types`); nothing runs this file."""

from typing import assert_type

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import wssl
from wssl.balance import Centering, ClusterBalancer, self_assignment, sinkhorn_knopp
from wssl.core.checks import InputError
from wssl.data import TwoViews, load_images
from wssl.evaluation import extract_features, knn_accuracy, linear_probe
from wssl.losses import (
    WassersteinUniformityLoss,
    barlow_twins_loss,
    byol_loss,
    info_nce,
    nt_xent,
    resa_loss,
    sigreg_loss,
    simsiam_loss,
    sliced_w2_loss,
    swav_loss,
    vicreg_loss,
    w_mse_loss,
)
from wssl.methods import BYOL, SimCLR
from wssl.metrics import (
    Alignment,
    Diagnosis,
    Moments,
    RankMe,
    Uniformity,
    WassersteinUniformity,
    alignment,
    alpha_req,
    bhattacharyya,
    cluster_scores,
    diagnose,
    embedding_std,
    gaussian_kl,
    gaussian_w2,
    live_fraction,
    participation_ratio,
    rankme,
    relative_cluster_sizes,
    singular_spectrum,
    stable_rank,
    uniformity,
    uniformity_floor,
    uniformity_zscore,
    wasserstein_uniformity,
)
from wssl.training import TrainConfig, train


def metrics(z: Tensor, z2: Tensor, rows: np.ndarray, labels: Tensor) -> None:
    w2 = wasserstein_uniformity(z, normalize=True, squared=False, corrected=False, group=wssl.WORLD)
    assert_type(w2, Tensor)
    assert_type(wasserstein_uniformity(rows), Tensor)
    assert_type(uniformity(z, t=2.0, group=None), Tensor)
    assert_type(alignment(z, z2, alpha=2), Tensor)
    assert_type(uniformity_floor(2000, 128), float)
    assert_type(uniformity_zscore(z), Tensor)
    live_fraction(w2, 2000, 128)
    live_fraction(0.5)
    live_fraction(float(w2), n=None, m=None)
    assert_type(singular_spectrum(rows, center=True, normalize=True), Tensor)
    for metric in (rankme, alpha_req, stable_rank, participation_ratio, embedding_std):
        assert_type(metric(z), Tensor)
    mean, cov = z.mean(0), z.T.cov()
    for distance in (gaussian_w2, gaussian_kl, bhattacharyya):
        assert_type(distance(mean, cov), Tensor)
    cluster_scores(z, labels, k=10)
    assert_type(relative_cluster_sizes(labels, 10), Tensor)
    moments = Moments(128)
    moments.update(z)
    moments.merge(Moments(128, device=z.device))
    moments.reduce(wssl.WORLD)
    found = diagnose(z, z2, labels)
    assert_type(found, Diagnosis)
    found.figure()
    assert_type(found.to_html(), str)
    collection = MetricCollection({"w2": WassersteinUniformity(128), "rankme": RankMe(128), "lu": Uniformity()})
    collection.update(z=z)
    Alignment().update(z, z2)


def losses(z1: Tensor, z2: Tensor, scores: Tensor, h: Tensor) -> Tensor:
    assignment = sinkhorn_knopp(scores, epsilon=0.05, iterations=3, group=None)
    assert_type(assignment, Tensor)
    balancer = ClusterBalancer(64, momentum=0.999, gamma=1.0)
    balancer.update(balancer(scores).argmax(1), group=wssl.WORLD)
    Centering(64, momentum=0.9)
    total = nt_xent(z1, z2, temperature=0.5) + info_nce(z1, z2, negatives=None, temperature=0.2)
    total = total + barlow_twins_loss(z1, z2) + vicreg_loss(z1, z2) + w_mse_loss(z1, z2, size=None)
    total = total + byol_loss(z1, z2) + simsiam_loss(z1, z2) + swav_loss(scores, scores)
    total = total + resa_loss(z1, z2, self_assignment(h, h))
    total = total + sigreg_loss(z1) + sliced_w2_loss(z1) + WassersteinUniformityLoss(0.2)(z1)
    assert_type(nt_xent(z1, z2), Tensor)
    assert_type(vicreg_loss(z1, z2), Tensor)
    assert_type(barlow_twins_loss(z1, z2), Tensor)
    return total


def training(net: nn.Module) -> None:
    images = load_images("digits", "train", size=32)
    assert_type(len(images), int)
    run = train(TrainConfig(method=BYOL(momentum=0.97), regularizer="w2", weight=0.2, epochs=2, device="cpu"))
    print(run.summary, run.history)
    TrainConfig(method=SimCLR(temperature=0.2), source="digits")
    features = extract_features(net, images)
    accuracy = knn_accuracy(features, images.y, features, images.y, k=20)
    float(accuracy)
    linear_probe(features, images.y, features, images.y)
    print(TwoViews)


def errors() -> None:
    try:
        wasserstein_uniformity(torch.zeros(4, 8, 8))
    except (InputError, ValueError) as error:
        print(error)
