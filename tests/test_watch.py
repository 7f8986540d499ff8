"""A watch of a training: what it says, what it logs, and that the training is what it would have been without it."""

import csv
import random
import sys
import types
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.distributed import run_ranks
from wssl.core.checks import InputError
from wssl.metrics import alignment, diagnose
from wssl.training import CollapseWarning, CollapseWatch, lightning_watch, quick_reading, trainer_watch
from wssl.training.watch import LEVELS, unnoticed

LOGGED = {"w2", "w2_floor", "dead_directions", "effective_dimensions", "rankme", "participation_ratio", "mean_length"}
LOGGED |= {"status", "seconds"}


def rows(n=200, m=16, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


def warned(work):
    "The sentences of the watch's warnings during `work()`."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in caught if one.category is CollapseWarning]


def scripted(stages, x, **options):
    "A watch whose embeddings are `stages[step](x)`."
    now = {}
    watch = CollapseWatch(nn.Linear(1, 1), x, lambda model, batch: now["stage"](batch), every=1, **options)

    def run():
        for step, stage in enumerate(stages):
            now["stage"] = stage
            watch(step)

    return watch, run


def even(x):
    return x


def dead(x):
    return x * (torch.arange(x.shape[1]) < x.shape[1] // 2)


def constant(x):
    return x * 0.01 + 1


def broken(x):
    return x * torch.nan


@pytest.mark.parametrize("space", ["embedding", "representation"])
@pytest.mark.parametrize("n, m, dtype", [(400, 24, torch.float32), (300, 16, torch.bfloat16), (90, 128, torch.float64)])
@pytest.mark.parametrize("shape", [even, dead, constant, torch.relu])
def test_a_reading_is_the_diagnosis_without_its_intervals(shape, n, m, dtype, space):
    z = shape(rows(n, m)).to(dtype)
    quick, full = quick_reading(z, space, step=7), diagnose(z, space=space)
    assert quick.status == full.status and quick.step == 7 and quick.numbers["status"] == LEVELS[full.status]
    names = {"w2": "W2", "rankme": "RankMe", "participation_ratio": "participation ratio", "mean_length": "mean length"}
    names |= {"dead_directions": "dead directions", "effective_dimensions": "effective dimensions"}
    for short, name in names.items():
        value = full.values[name].value
        assert quick.numbers.get(short) == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9))
    assert quick.numbers["w2_floor"] == pytest.approx(full.values["W2"].reference)


def test_eight_points_are_a_cluster_collapse():
    z = rows(8, 32).repeat(250, 1) + 1e-3 * rows(2000, 32, seed=1)
    assert quick_reading(z).status == diagnose(z, space="embedding").status == "cluster collapse"


def test_every_is_honoured():
    watch = CollapseWatch(nn.Linear(16, 16), rows(), every=30)
    assert [step for step in range(100) if watch(step)] == [0, 30, 60, 90]
    late = CollapseWatch(nn.Linear(16, 16), rows(), every=30)
    assert [step for step in range(47, 130) if late(step)] == [47, 60, 90, 120]
    leaps = CollapseWatch(nn.Linear(16, 16), rows(), every=30)
    assert [step for step in range(0, 140, 7) if leaps(step)] == [0, 35, 63, 91, 126]
    again = CollapseWatch(nn.Linear(16, 16), rows(), every=2)
    assert [bool(again(step)) for step in (0, 1, 2, 2, 2, 3, 4)] == [True, False, True, False, False, False, True]


def test_a_change_is_said_once():
    watch, run = scripted([even, even, dead, dead, even, dead, constant, constant], rows())
    said = warned(run)
    assert [reading.status for reading in watch.history][2:5] == [
        "dimensional collapse",
        "dimensional collapse",
        "healthy",
    ]
    assert len(said) == 3, said  # step 5 is a change that was said at step 2
    assert said[0].startswith("collapse watch, step 2: dimensional collapse: 8 of 16 directions dead")
    assert said[0].endswith("(before: healthy)") and "\n" not in said[0]
    assert said[1].startswith("collapse watch, step 4: healthy") and said[2].startswith(
        "collapse watch, step 6: constant"
    )


def test_the_start_is_no_change_but_a_collapse_that_stays_is_said():
    assert warned(scripted([constant], rows())[1]) == []
    assert warned(scripted([even] * 4, rows())[1]) == []
    (said,) = warned(scripted([constant] * 4, rows(), name="z")[1])
    assert said.startswith("z watch, step 1: constant collapse") and said.endswith("as at the start")
    (said,) = warned(scripted([even] * 3, rows(20))[1])
    assert said.startswith("collapse watch, step 0: too few rows")


def test_what_cannot_be_read_is_said_once_and_ends_nothing():
    watch, run = scripted([even, broken, broken, broken, even, even, broken], rows())
    said = warned(run)
    assert [reading.status for reading in watch.history].count("no reading") == 4 and len(said) == 2
    assert "step 1: no reading: expected finite embeddings; received 3200 NaN or infinite values of 3200" in said[0]
    assert "step 4: healthy" in said[1]
    assert watch.history[1].numbers.keys() == {"status", "seconds"} and watch.history[1].numbers["status"] == -2

    def boom(x):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate a lot")

    (said,) = warned(scripted([boom] * 3, rows())[1])
    assert said.endswith("no reading: OutOfMemoryError: CUDA out of memory.")
    (said,) = warned(scripted([lambda x: {"z": x}] * 2, rows())[1])
    assert said.endswith("expected embed(model, batch) to give a tensor (rows, dimensions); received a dict")


class Merging(nn.Linear):
    "As LoRA layers do: what `train(False)` adds to the weights stays if the mode is put back by hand."

    def train(self, mode=True):
        if self.training and not mode:
            self.weight.data += 1
        return super().train(mode)


def test_the_training_does_not_notice():
    net = nn.Sequential(Merging(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 16))
    net[1].eval()  # a frozen layer inside a network in training mode
    net(rows()).sum().backward()
    modes = [part.training for part in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    seen = []

    def embed(model, batch):
        seen.append(([part.training for part in model.modules()], torch.is_grad_enabled()))
        torch.rand(3), np.random.rand(), random.random()
        return model(batch)

    def draws():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            np.random.get_state()[2],
            random.getstate(),
        )

    before = draws()
    loader = DataLoader(rows(), batch_size=50, shuffle=True)  # draws a seed of its own at every pass
    assert CollapseWatch(net, loader, embed)(0).status != "no reading"
    assert draws() == before
    assert len(seen) == 4 and all(not any(mode) and not grad for mode, grad in seen)
    assert [part.training for part in net.modules()] == modes and torch.is_grad_enabled()
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype, name
    assert all(torch.equal(p.grad, old) for p, old in zip(net.parameters(), gradients, strict=True))


def test_modes_and_draws_come_back_after_an_error():
    net, before = nn.Sequential(nn.Dropout()), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), unnoticed(net):
        assert not net[0].training
        torch.rand(1)
        raise ZeroDivisionError
    assert net[0].training and torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


def test_a_model_in_bfloat16_stays_so_and_is_read():
    net = nn.Linear(16, 16).bfloat16()
    reading = CollapseWatch(net, rows())(0)
    assert reading.status != "no reading" and {p.dtype for p in net.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert CollapseWatch(nn.Linear(16, 16), rows())(0).status != "no reading"


def test_a_wrapper_of_several_devices_is_taken_off():
    net = nn.Linear(16, 16)
    watch = CollapseWatch(nn.DataParallel(net), rows())
    assert watch.model is net and watch(0).status != "no reading"


def test_parts_equal_the_whole():
    net, x = nn.Linear(16, 16), rows()
    whole = CollapseWatch(net, x, batch=1000)(0).numbers
    keyed = CollapseWatch(net, {"x": x}, lambda model, batch: model(batch["x"]), batch=33)
    pairs = CollapseWatch(net, DataLoader(TensorDataset(x, x), batch_size=64), lambda model, batch: model(batch[0]))
    for watch in (
        CollapseWatch(net, x, batch=7),
        CollapseWatch(net, x.split(60)),
        CollapseWatch(net, x.numpy()),
        keyed,
        pairs,
    ):
        numbers = watch(0).numbers
        assert numbers.keys() == LOGGED
        for name in LOGGED - {"seconds"}:
            assert numbers[name] == pytest.approx(whole[name], rel=1e-5), name


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": 3}, "expected a torch.nn.Module to watch; received a int"),
        ({"rows": torch.ones(0, 4)}, "expected at least 2 held-out rows; received none"),
        ({"rows": []}, "expected at least 2 held-out rows; received none"),
        ({"rows": {}}, "expected at least 2 held-out rows; received none"),
        ({"rows": None}, "or a list or DataLoader of batches; received a NoneType"),
        ({"rows": iter([1])}, "or a list or DataLoader of batches; received a list_iterator"),
        ({"rows": {"a": torch.ones(3), "b": torch.ones(2)}}, "received a dict of shape \\(3,\\), shape \\(2,\\)"),
        ({"rows": {"a": [1]}}, "received a dict of a list"),
        ({"embed": 1}, "expected embed as a function of \\(model, batch\\); received a int"),
        ({"every": 0}, "expected every as a whole number from 1; received 0"),
        ({"every": 2.5}, "expected every as a whole number from 1; received 2.5"),
        ({"batch": True}, "expected batch as a whole number from 1; received True"),
        ({"space": "z"}, "expected space representation or embedding; received 'z'"),
        ({"log": "tb"}, "expected log as a function of \\(numbers, step\\) or a SummaryWriter; received a str"),
    ],
)
def test_wrong_arguments_are_one_sentence_before_the_training(change, words):
    with pytest.raises(InputError, match=words):
        CollapseWatch(**({"model": nn.Linear(4, 4), "rows": torch.ones(64, 4)} | change))


def test_a_collapsing_training_is_noticed():
    "Two views pulled together and nothing else: said within sixty steps, once."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer, x = torch.optim.Adam(net.parameters(), lr=3e-3), rows(400)
    watch = CollapseWatch(net, rows(300, seed=1), every=10)

    def train():
        for step in range(101):
            watch(step)
            batch = x[torch.randint(400, (128,))]
            loss = alignment(net(batch + 0.5 * torch.randn_like(batch)), net(batch), normalize=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    said = warned(train)
    assert not watch.history[0].status.endswith("collapse") and watch.history[6].status.endswith("collapse")
    assert any("collapse: " in sentence for sentence in said) and len(said) <= 2


def test_logs_are_written_under_the_name_and_an_error_of_theirs_is_said_once(tmp_path):
    seen = []
    watch = CollapseWatch(nn.Linear(16, 16), rows(), every=5, log=lambda n, s: seen.append((n, s)), name="h")
    for step in range(11):
        watch(step)
    assert [step for _, step in seen] == [0, 5, 10] and set(seen[0][0]) == {f"h/{name}" for name in LOGGED}
    assert all(isinstance(value, int | float) for value in seen[0][0].values())

    board = pytest.importorskip("torch.utils.tensorboard", reason="TensorBoard is part of the extra dev")
    with board.SummaryWriter(tmp_path) as writer:
        watch = CollapseWatch(nn.Linear(16, 16), rows(), every=5, log=writer)
        for step in range(6):
            watch(step)
    assert steps_of(tmp_path, "collapse/w2") == [0, 5]

    def full(numbers, step):
        raise OSError(28, "No space left on device")

    watch = CollapseWatch(nn.Linear(16, 16), rows(), every=1, log=full)
    (said,) = warned(lambda: [watch(step) for step in range(4)])
    assert said.endswith("step 0: nothing logged: OSError: [Errno 28] No space left on device")


def steps_of(folder, tag):
    "The steps that TensorBoard's files hold of a number."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(folder.rglob("events*")).parent))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def _watched_rank(rank):
    "What a process of two logs, says and has read."
    logged = []
    watch, run = scripted([even, dead, dead], rows(), log=lambda numbers, step: logged.append(step))
    said = warned(run)
    return logged, said, [reading.status for reading in watch.history]


def test_of_two_processes_only_the_first_one_speaks_and_neither_waits():
    (logged, said, first), (silent, nothing, second) = run_ranks(partial(_watched_rank))
    assert logged == [0, 1, 2] and len(said) == 1 and silent == nothing == []
    assert first == second == ["healthy", "dimensional collapse", "dimensional collapse"]


def lightning_run(callbacks, loggers, L, steps=20):
    "A small Lightning training that collapses; the module after it."

    class Siamese(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 16)
            )

        def training_step(self, batch, batch_idx):
            z1, z2 = (self.net(batch[0] + 0.5 * torch.randn_like(batch[0])) for _ in range(2))
            return alignment(z1, z2)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=3e-3)

    L.seed_everything(0, verbose=False)
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=1000,
        **quiet,
    )
    module = Siamese()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, DataLoader(TensorDataset(rows(320)), batch_size=64, shuffle=True))
    return trainer, module


def test_lightning_logs_to_every_logger_at_its_steps_and_trains_the_same(tmp_path):
    L = pytest.importorskip("lightning", reason="Lightning is part of the extra dev")
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    callback = lightning_watch(rows(300, seed=1), lambda module, batch: module.net(batch), every=7)
    trainer, module = lightning_run([callback], loggers, L)
    assert [reading.step for reading in callback.watch.history] == [0, 7, 14]
    (path,) = tmp_path.glob("csv/**/metrics.csv")
    lines = list(csv.DictReader(path.open()))
    assert [int(line["step"]) for line in lines] == [0, 7, 14]
    for line, reading in zip(lines, callback.watch.history, strict=True):
        assert float(line["collapse/w2"]) == pytest.approx(reading.numbers["w2"])
    assert steps_of(tmp_path / "tb", "collapse/w2") == [0, 7, 14]
    assert float(trainer.callback_metrics["collapse/w2"]) == pytest.approx(callback.watch.history[-1].numbers["w2"])
    _, alone = lightning_run([], False, L)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), alone.state_dict().values(), strict=True)
    )


def test_lightning_counts_steps_of_the_optimizer_and_needs_no_logger():
    L = pytest.importorskip("lightning", reason="Lightning is part of the extra dev")
    callback = lightning_watch(rows(300, seed=1), lambda module, batch: module.net(batch), every=1)
    lightning_run([callback], False, L, steps=4)
    assert [reading.step for reading in callback.watch.history] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="every as a whole number"):
        lightning_watch(rows(), every=-1)


def stand_in():
    "Of transformers 5.24, as far as a callback sees it: the order of the callbacks, the flag, and the call that takes it back."
    hooks = ("on_train_begin", "on_step_end", "on_log")
    package = types.ModuleType("transformers")
    package.TrainerCallback = type("TrainerCallback", (), {hook: lambda self, *a, **k: None for hook in hooks})

    class Flow(package.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_log = state.global_step % 5 == 0

    class Trainer:
        def __init__(self, model):
            self.model, self.args, self.callbacks = model, None, [Flow()]
            self.state = types.SimpleNamespace(global_step=0, log_history=[])
            self.control = types.SimpleNamespace(should_log=False)

        def add_callback(self, callback):
            self.callbacks.append(callback)

        def call(self, event, **kwargs):
            for callback in self.callbacks:
                getattr(callback, event)(self.args, self.state, self.control, model=self.model, **kwargs)

        def log(self, logs):
            self.state.log_history.append({**logs, "step": self.state.global_step})
            self.control.should_log = False
            self.call("on_log", logs=logs)

        def train(self, steps):
            self.call("on_train_begin")
            for step in range(1, steps + 1):
                self.state.global_step = step
                self.call("on_step_end")
                if self.control.should_log:
                    self.log({"loss": 1.0})

    package.Trainer = Trainer
    return package


def test_a_trainer_that_behaves_like_hugging_faces_logs_the_watch_and_still_its_loss(monkeypatch):
    "Without transformers, on a stand-in with the behaviour that was seen; the test below takes the real one where it is installed."
    package = stand_in()
    monkeypatch.setitem(sys.modules, "transformers", package)

    class Collecting(package.Trainer):
        def log(self, logs):
            assert "loss" in logs, "the watch must not empty what a subclass has collected"
            super().log(logs)

    trainer = Collecting(nn.Linear(16, 16))
    callback = trainer_watch(trainer, {"input": rows()}, lambda model, batch: model(batch["input"]), every=10)
    trainer.train(20)
    history = trainer.state.log_history
    assert [line["step"] for line in history if "collapse/w2" in line] == [0, 10, 20]
    assert [line["step"] for line in history if "loss" in line] == [5, 10, 15, 20]
    assert [reading.step for reading in callback.watch.history] == [0, 10, 20]
    with pytest.raises(InputError, match=r"expected a transformers.Trainer; received a Linear"):
        trainer_watch(nn.Linear(1, 1), rows())


def test_hugging_faces_trainer_for_real(tmp_path):
    "Batches without labels, and a model that an evaluation before the training left in bfloat16."
    reason = "transformers and accelerate are no part of the lock: pip install transformers accelerate"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("accelerate", reason=reason)

    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 16))

        def forward(self, x):
            x = x.to(self.net[0].weight.dtype)
            z1, z2 = (self.net(x + 0.5 * torch.randn_like(x)) for _ in range(2))
            return {"loss": alignment(z1, z2), "z": torch.stack([z1, z2])}

    def train(watched, half=False):
        transformers.set_seed(0)
        options = dict(
            max_steps=20, per_device_train_batch_size=64, learning_rate=3e-3, logging_steps=5, report_to=["none"]
        )
        options |= dict(save_strategy="no", disable_tqdm=True, use_cpu=True, bf16_full_eval=half)
        data = [{"x": row} for row in rows(320)]
        args = transformers.TrainingArguments(str(tmp_path), **options)
        trainer = transformers.Trainer(Siamese(), args, train_dataset=data, eval_dataset=data[:64])
        callback = trainer_watch(trainer, rows(300, seed=1), lambda m, x: m.net(x), every=10) if watched else None
        if half:
            trainer.evaluate()
        trainer.train()
        return trainer, callback

    trainer, callback = train(True)
    history = trainer.state.log_history
    assert [line["step"] for line in history if "collapse/w2" in line] == [0, 10, 20]
    assert [line["step"] for line in history if "loss" in line] == [5, 10, 15, 20]
    alone, _ = train(False)
    assert [line["loss"] for line in history if "loss" in line] == [
        line["loss"] for line in alone.state.log_history if "loss" in line
    ]
    pairs = zip(trainer.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [part.training for part in trainer.model.modules()] == [part.training for part in alone.model.modules()]
    trainer, callback = train(True, half=True)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}  # as transformers left it
    assert all(reading.status != "no reading" for reading in callback.watch.history)
