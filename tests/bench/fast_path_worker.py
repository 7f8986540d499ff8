"""Training steps of whichever build of wssl is on the path, on request: a JSON line in, a JSON line out. `earlier.py` starts one for each build."""

import json
import sys
import time

import torch

from wssl.core import environment
from wssl.core.seeds import generator
from wssl.data.images import synthetic
from wssl.methods.catalog import METHODS
from wssl.training.config import TrainConfig, views_of
from wssl.training.step import build_method, in_bfloat16, make_optimizer, train_step

BATCH = 256
# operator -> share of a step that it is counted in; all others are "else"
SHARES = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "_convolution"),
    "BatchNorm": ("native_batch_norm", "native_batch_norm_backward"),
    "ReLU": ("clamp_min", "threshold_backward", "threshold"),
    "products": ("mm", "bmm", "addmm", "baddbmm"),
    "sums and copies": ("add", "add_", "copy_", "index_select", "index_add_"),
}


class Steps:
    """A method in training; `run` takes views and steps of it."""

    def __init__(self, method, precision, size):
        self.config = TrainConfig(
            method=METHODS[method](hidden=512, out=128),
            source="synthetic",
            augmentation="small",
            batch=BATCH,
            precision=precision,
            size=size,
        )
        self.method = build_method(self.config).train()
        if precision == "bfloat16":
            in_bfloat16(self.method)
        self.optimizer, self.views = make_optimizer(self.method, self.config), views_of(self.config)
        self.images, self.done = synthetic("train", per_class=-(-BATCH // 10)).x[:BATCH], 0

    def run(self, steps):
        """Processor seconds of the views and of the rest, each a list over `steps`."""
        seconds = {"views": [], "step": []}
        for _ in range(steps):
            times = [time.process_time()]
            views = self.views(self.images, generator(0, "views", self.done))
            times.append(time.process_time())
            train_step(self.method, self.optimizer, views, self.config, 0.5, 0.5)
            times.append(time.process_time())
            self.done += 1
            seconds["views"].append(times[1] - times[0])
            seconds["step"].append(times[2] - times[1])
        return seconds

    def shares(self):
        """Share of each group of operators in the processor time of a step, without its views."""
        views = self.views(self.images, generator(0, "views", 0))
        train_step(self.method, self.optimizer, views, self.config, 0.5, 0.5)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(5):
                train_step(self.method, self.optimizer, views, self.config, 0.5, 0.5)
        spent = dict.fromkeys([*SHARES, "else"], 0.0)
        for operator in profile.key_averages():
            name = operator.key.removeprefix("aten::")
            spent[next((group for group, names in SHARES.items() if name in names), "else")] += (
                operator.self_cpu_time_total
            )
        return {name: value / sum(spent.values()) for name, value in spent.items()}


def main():
    torch.set_num_threads(1)
    getattr(environment, "keep_freed_memory", lambda: None)()
    at_work = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = asked["method"], asked["precision"], asked["size"]
        if key not in at_work:
            at_work[key] = Steps(*key)
        steps = at_work[key]
        answer = steps.shares() if asked.get("shares") else steps.run(asked["steps"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
