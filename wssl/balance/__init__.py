"""Assignments in which no cluster takes all: Sinkhorn-Knopp, centring, ExCB's explicit balancing, ReSA's self-assignment, and spherical k-means."""

from wssl.balance.centering import Centering
from wssl.balance.excb import ClusterBalancer, balanced
from wssl.balance.kmeans import spherical_kmeans
from wssl.balance.resa import assignment_softness, self_assignment
from wssl.balance.sinkhorn import sinkhorn_knopp

__all__ = [
    "Centering", "ClusterBalancer", "assignment_softness", "balanced", "self_assignment", "sinkhorn_knopp",
    "spherical_kmeans",
]
