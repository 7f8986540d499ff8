"""The trainings of the test bed: methods as published, and each with the part taken away that keeps it from collapsing."""

from typing import NamedTuple

import torch
from torch import nn

from wssl.methods import BYOL, DINO, AlignW2, BarlowTwins, ExCB, SimCLR, SimSiam, VICReg

HEADS = {"hidden": 256, "out": 64}
MOVING = {"momentum": 0.9, "momentum_end": 0.97}


class Arm(NamedTuple):
    """One training of the test bed."""

    method: object  # Options of the method
    twin: str | None = None  # The arm that it is compared with; None: nothing is taken away
    change: object = None  # Function that changes the built method in place
    space: str = "z"  # Where the collapse is looked for: embedding z or representation h


def still_features(method, share=0.4):
    """Units of the last ReLU that never fire: their BatchNorm's bias is far below 0, so no gradient comes back."""
    norm = [part for part in method.encoder.modules() if isinstance(part, nn.BatchNorm2d)][-1]
    norms = [part for part in method.encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    same = [part for part in norms if part.num_features == norm.num_features]
    off = torch.arange(norm.num_features) < share * norm.num_features
    for part in same:  # of the main path and of the shortcut, so that their sum stays below 0
        with torch.no_grad():
            part.weight[off], part.bias[off] = 0.0, -8.0


def frozen_batchnorm(method):
    """BatchNorm that keeps its first statistics, mean 0 and variance 1."""
    for part in method.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train = lambda mode=True, part=part: nn.Module.train(part, False)


ARMS = {
    "SimCLR": Arm(SimCLR(temperature=0.2, **HEADS)),
    "BYOL": Arm(BYOL(**MOVING, **HEADS)),
    "SimSiam": Arm(SimSiam(bottleneck=32, **HEADS)),
    "VICReg": Arm(VICReg(**HEADS)),
    "Barlow Twins": Arm(BarlowTwins(lambd=0.02, **HEADS)),
    "AlignW2": Arm(AlignW2(**HEADS)),
    "DINO": Arm(DINO(prototypes=128, teacher_temperature=0.04, **MOVING, **HEADS)),
    "ExCB": Arm(ExCB(prototypes=128, teacher_temperature=0.04, size_momentum=0.9, **MOVING, **HEADS)),
    "BYOL without predictor": Arm(BYOL(predictor=False, **MOVING, **HEADS), "BYOL"),
    "BYOL without stop-gradient": Arm(BYOL(stop_gradient=False, **MOVING, **HEADS), "BYOL"),
    "BYOL without predictor and moving average": Arm(
        BYOL(predictor=False, momentum=0.0, momentum_end=0.0, **HEADS), "BYOL"
    ),
    "SimSiam without stop-gradient": Arm(SimSiam(bottleneck=32, stop_gradient=False, **HEADS), "SimSiam"),
    "SimSiam without predictor": Arm(SimSiam(predictor=False, **HEADS), "SimSiam"),
    "SimSiam with a frozen BatchNorm": Arm(SimSiam(bottleneck=32, **HEADS), "SimSiam", frozen_batchnorm),
    "VICReg without variance": Arm(VICReg(variance=0.0, **HEADS), "VICReg"),
    "VICReg without covariance": Arm(VICReg(covariance=0.0, **HEADS), "VICReg"),
    "VICReg with invariance alone": Arm(VICReg(variance=0.0, covariance=0.0, **HEADS), "VICReg"),
    "Barlow Twins without the off-diagonal": Arm(BarlowTwins(lambd=0.0, **HEADS), "Barlow Twins"),
    "alignment alone (W2 of weight 0)": Arm(AlignW2(weight=0.0, **HEADS), "AlignW2"),
    "DINO without centring": Arm(
        DINO(prototypes=128, teacher_temperature=0.04, center_momentum=1.0, **MOVING, **HEADS), "DINO"
    ),
    "ExCB without balancing": Arm(
        ExCB(prototypes=128, teacher_temperature=0.04, size_momentum=0.9, balance="none", **MOVING, **HEADS), "ExCB"
    ),
    "SimCLR with dead ReLUs": Arm(SimCLR(temperature=0.2, **HEADS), "SimCLR", still_features, "h"),
    "BYOL with dead ReLUs": Arm(BYOL(**MOVING, **HEADS), "BYOL", still_features, "h"),
}
