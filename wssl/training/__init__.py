"""One loop for every method: `train(config) -> Run`."""

from wssl.training.config import TrainConfig
from wssl.training.loop import Run, TrainingError, evaluate, train
from wssl.training.optim import LARS

__all__ = [
    "LARS", "Run", "TrainConfig", "TrainingError", "evaluate", "train",
]
