"""One loop for every method: `train(config) -> Run`."""

from wssl.training.config import TrainConfig
from wssl.training.evaluation import evaluate
from wssl.training.loop import train
from wssl.training.optim import LARS
from wssl.training.runs import Run, TrainingError
from wssl.training.watch import (
    CollapseReading,
    CollapseWarning,
    CollapseWatch,
    lightning_watch,
    quick_reading,
    trainer_watch,
)

__all__ = [
    "CollapseReading", "CollapseWarning", "CollapseWatch", "LARS", "Run", "TrainConfig", "TrainingError",
    "evaluate", "lightning_watch", "quick_reading", "train", "trainer_watch",
]
