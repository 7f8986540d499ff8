"""One loop for every method: `train(config) -> Run`."""

from wssl.training.config import TrainConfig
from wssl.training.evaluation import evaluate
from wssl.training.loop import train
from wssl.training.optim import LARS
from wssl.training.runs import Run, TrainingError

__all__ = [
    "LARS", "Run", "TrainConfig", "TrainingError", "evaluate", "train",
]
