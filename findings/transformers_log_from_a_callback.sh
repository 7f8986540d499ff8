#!/bin/sh
# transformers 5.24.0 (accelerate 1.15.0, torch 2.9.1). Guess: a callback that calls `trainer.log` at the end of a step adds its line to the history, and the
# loss is logged every `logging_steps` as before. Seen: handling `on_log` clears `control.should_log`, so a step that both should log loses the line of the loss.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.9.1 transformers==5.24.0 accelerate==1.15.0 numpy==2.3.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.layer(x).square().mean()}


class Extra(TrainerCallback):
    def __init__(self, every):
        self.every, self.trainer = every, None

    def on_step_end(self, args, state, control, **kwargs):
        if self.every and state.global_step % self.every == 0:
            self.trainer.log({"extra": 1.0})


def losses(every):
    data = [{"x": row} for row in torch.randn(16, 4)]
    options = dict(max_steps=8, logging_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True)
    extra = Extra(every)
    extra.trainer = Trainer(Model(), TrainingArguments("out", **options), train_dataset=data, callbacks=[extra])
    extra.trainer.train()
    return [line["step"] for line in extra.trainer.state.log_history if "loss" in line]


alone, beside = losses(0), losses(4)
print(f"steps with a line of the loss: {alone}; where a callback logs every fourth step: {beside}")
assert alone == [2, 4, 6, 8] and beside == [2, 6], "the behaviour has changed"
PYTHON
