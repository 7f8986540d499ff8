"""The test bed's trainings are what their names say, and its record holds all of them."""

import json

import pytest
import torch
from torch import nn

from tests.testbed.__main__ import COMMON, EPOCHS, LOOKS
from tests.testbed.arms import ARMS
from tests.testbed.measure import centred_rank, meters
from wssl.companion.records import data_dir
from wssl.training import TrainConfig
from wssl.training.step import build_method


def built(name):
    method = build_method(TrainConfig(method=ARMS[name].method, **COMMON))
    if ARMS[name].change:
        ARMS[name].change(method)
    return method


def test_dead_relus_stay_dead_and_the_others_live():
    h = built("SimCLR with dead ReLUs").encoder.train()(torch.randn(64, 3, 24, 24))
    still = (h == 0).all(0)
    assert still.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert not still[len(still) // 2 :].any()


def test_a_frozen_batchnorm_keeps_its_statistics_when_it_trains():
    method = built("SimSiam with a frozen BatchNorm").train()
    norms = [part for part in method.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    method([torch.randn(8, 3, 24, 24)] * 2)
    assert len(norms) > 5 and all(not norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert method.training and method.encoder.training


def test_each_change_names_a_method_that_is_whole():
    for arm in ARMS.values():
        assert arm.twin is None or (ARMS[arm.twin].twin is None and type(ARMS[arm.twin].method) is type(arm.method))
    assert sum(arm.twin is not None for arm in ARMS.values()) >= 12


def test_meters_of_rows_that_are_all_right():
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    found = meters(rows, "embedding")
    assert found["status"] == "healthy" and found["dead directions"] == 0 and found["std * sqrt m"] > 0.98
    assert 15.9 < found["centred rank"] <= 16 and centred_rank(torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2)


def test_the_record_holds_every_training_at_every_epoch():
    record = json.loads((data_dir() / "measured" / "test_bed.json").read_text())
    assert record["training"] == COMMON | {"epochs": EPOCHS}
    found = [(row["arm"], row["seed"], row["space"], row["epoch"]) for row in record["rows"]]
    asked = [
        (name, seed, space, epoch)
        for name, arm in ARMS.items()
        for seed in range(3)
        for space in ([arm.space] if arm.twin else ["z", "h"])
        for epoch in LOOKS
    ]
    assert len(found) == len(set(found)) and set(found) == set(asked)
