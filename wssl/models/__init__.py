"""Encoders, heads and their momentum copies."""

from wssl.models.encoders import ENCODERS, SmallResNet, encoder, initialised_from
from wssl.models.heads import Prototypes, predictor, projector
from wssl.models.momentum import MomentumNetwork, Queue, recent_weight

__all__ = [
    "ENCODERS", "MomentumNetwork", "Prototypes", "Queue", "SmallResNet", "encoder", "initialised_from", "predictor",
    "projector", "recent_weight",
]
