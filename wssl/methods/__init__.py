"""Methods: encoder, heads, loss, and what happens after a step."""

from wssl.methods.align_gaussian import AlignSliced, LeJEPA, VISReg
from wssl.methods.align_uniform import AlignUniform
from wssl.methods.align_w2 import AlignW2
from wssl.methods.base import Method, Output
from wssl.methods.byol import BYOL
from wssl.methods.catalog import METHODS
from wssl.methods.deepcluster import DeepClusterV2
from wssl.methods.directclr import DirectCLR
from wssl.methods.excb import ExCB
from wssl.methods.moco import MoCoV2
from wssl.methods.moco_v3 import MoCoV3
from wssl.methods.nnclr import NNCLR
from wssl.methods.pretext import Colorization, Jigsaw, RelativePosition, RotNet
from wssl.methods.prototypes import DINO, SwAV
from wssl.methods.redundancy import BarlowTwins, ZeroCL
from wssl.methods.resa import ReSA
from wssl.methods.simclr import SimCLR
from wssl.methods.simdino import SimDINO
from wssl.methods.simsiam import SimSiam
from wssl.methods.vicreg import VICReg
from wssl.methods.whitening import INTL, WMSE
from wssl.methods.vicregl import VICRegL

__all__ = [
    "AlignSliced", "AlignUniform", "AlignW2", "BYOL", "BarlowTwins", "Colorization", "DINO", "DeepClusterV2",
    "DirectCLR", "ExCB", "INTL", "Jigsaw", "LeJEPA", "METHODS", "Method", "MoCoV2", "MoCoV3", "NNCLR", "Output",
    "ReSA", "RelativePosition", "RotNet", "SimCLR", "SimDINO", "SimSiam", "SwAV", "VICReg", "VICRegL", "VISReg",
    "WMSE", "ZeroCL",
]
