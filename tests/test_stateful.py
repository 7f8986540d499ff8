"""The torchmetrics classes under what real trainers and wrappers do to them, against the functions and against formulas in numpy."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.wrappers import BootStrapper, MultioutputWrapper, Running

from tests.distributed import run_ranks
from wssl.balance import Centering, ClusterBalancer
from wssl.core.rows import rounds_products
from wssl.metrics import (
    Alignment,
    Moments,
    RankMe,
    Uniformity,
    WassersteinUniformity,
    alignment,
    diagnose,
    rankme,
    singular_spectrum,
    uniformity,
    wasserstein_uniformity,
)

M = 6
MAKE = {
    "alignment": Alignment,
    "alignment, alpha 1": lambda **how: Alignment(1, **how),
    "uniformity": Uniformity,
    "uniformity, raw rows": lambda **how: Uniformity(1.0, normalize=False, **how),
    "w2": lambda **how: WassersteinUniformity(M, **how),
    "w2, raw rows": lambda **how: WassersteinUniformity(M, normalize=False, squared=True, **how),
    "w2, corrected": lambda **how: WassersteinUniformity(M, corrected=True, **how),
    "rankme": lambda **how: RankMe(M, **how),
}


def _rows(n, seed=0, dtype=torch.float32, m=M):
    z = torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * torch.linspace(1, 0.2, m, dtype=torch.float64) + 0.3).to(dtype)


def _batches(dtype=torch.float32, sizes=(40, 300, 17, 61)):
    return [(_rows(n, i, dtype), _rows(n, 100 + i, dtype)) for i, n in enumerate(sizes)]


def _see(metric, batch):
    metric.update(*batch) if isinstance(metric, Alignment) else metric.update(batch[0])


def _formula(name, batches):
    """Of all rows, in numpy and float64."""
    a, b = (np.concatenate([batch[i].double().numpy() for batch in batches]) for i in (0, 1))
    raw = "raw" in name or name == "rankme"
    x, y = (v if raw else v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    if name.startswith("alignment"):
        return (np.linalg.norm(x - y, axis=1) ** (1 if "1" in name else 2)).mean()
    if name.startswith("uniformity"):
        i, j = np.triu_indices(len(x), 1)
        return math.log(np.exp(-(1.0 if raw else 2.0) * ((x[i] - x[j]) ** 2).sum(1)).mean())
    if name == "rankme":
        s = np.linalg.svd(x, compute_uv=False)
        return math.exp(-(s / s.sum() * np.log(s / s.sum())).sum())
    root = np.sqrt(np.linalg.eigvalsh(np.cov(x.T, bias=True))).sum()
    if name == "w2, corrected":
        return wasserstein_uniformity(torch.from_numpy(a), corrected=True).item()
    squared = 1 + (x**2).sum(1).mean() - 2 / M**0.5 * root
    return squared if raw else math.sqrt(squared)


class Network(nn.Module):
    def __init__(self, metric):
        super().__init__()
        self.layer, self.metrics = nn.Linear(2, 2), nn.ModuleList([metric])


CASTS = {
    ".half()": lambda net: net.half(),
    ".bfloat16()": lambda net: net.bfloat16(),
    ".to(bfloat16)": lambda net: net.to(torch.bfloat16),
    "ModuleList.to(float16)": lambda net: net.metrics.to(torch.float16) and net,
    ".to(device, dtype)": lambda net: net.to("cpu", torch.bfloat16),
    ".to(another tensor)": lambda net: net.to(torch.zeros(1, dtype=torch.float16)),
    ".type(bfloat16)": lambda net: net.type(torch.bfloat16),
    ".to(float32)": lambda net: net.to(torch.float32),
    "metric.to": lambda net: net.metrics[0].to(torch.bfloat16) and net,
    "set_dtype": lambda net: net.metrics[0].set_dtype(torch.float16) and net,
    "there and back": lambda net: net.to(torch.bfloat16).double().half().float(),
    "copied, then cast": lambda net: copy.deepcopy(net).to(torch.bfloat16),
    "in a new process's hands": lambda net: pickle.loads(pickle.dumps(net)).half(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MAKE)
def test_states_keep_their_type_in_a_network_that_is_cast(name, cast):
    batches, net = _batches(), Network(MAKE[name]())
    for batch in batches:
        net = CASTS[cast](net)
        _see(net.metrics[0], batch)
    net = CASTS[cast](net)
    states = [s for s in net.metrics[0].metric_state.values() if isinstance(s, torch.Tensor) and s.is_floating_point()]
    assert all(state.dtype == torch.float64 for state in states)
    assert net.metrics[0].compute().item() == pytest.approx(_formula(name, batches), rel=2e-6)
    net.metrics[0].reset()
    _see(net.metrics[0], batches[0])
    assert net.metrics[0].compute().item() == pytest.approx(_formula(name, batches[:1]), rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKE)
def test_half_rows_and_a_half_default_type_give_what_float32_gives(name, dtype):
    """As under Lightning's `bf16-true`, which makes the half type the default one, too."""
    batches = _batches(dtype)
    torch.set_default_dtype(dtype)
    try:
        metric = MAKE[name]().to(dtype)
        for batch in batches:
            _see(metric, batch)
        value = metric.compute()
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype in (torch.float32, torch.float64)
    assert value.item() == pytest.approx(_formula(name, batches), rel=3e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "16-true"])
def test_lightning(precision, tmp_path):
    lightning = pytest.importorskip("lightning", reason="its precisions are what is tested")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(M, M)
            self.seen = MetricCollection({name: make() for name, make in MAKE.items() if "alignment" not in name})
            self.align, self.rows = Alignment(), []

        def validation_step(self, batch, _):
            z = self.layer(batch).float()
            self.rows.append(z)
            self.seen.update(z)
            self.align(z, z.flip(0))

        def on_validation_epoch_end(self):
            self.found = {name: value.item() for name, value in self.seen.compute().items()}
            self.log("alignment", self.align)

    rows = _rows(512)
    half = torch.float16 if precision == "16-true" else torch.bfloat16
    batches = torch.utils.data.DataLoader(rows.to(half) if "true" in precision else rows, batch_size=32)
    module = Module()
    how = dict(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(**how, precision=precision, enable_progress_bar=False, enable_model_summary=False)
        logged = trainer.validate(module, batches, verbose=False)[0]
    seen = [(z, z.flip(0)) for z in module.rows]
    assert module.seen["w2"].products.dtype == module.align.total.dtype == torch.float64
    for name, value in module.found.items():
        assert value == pytest.approx(_formula(name, seen), rel=3e-6), name
    assert logged["alignment"] == pytest.approx(_formula("alignment", seen), rel=1e-6)


PAIRS = {
    "alpha": (lambda: Alignment(1), lambda: Alignment(2)),
    "normalize": (lambda: WassersteinUniformity(M), lambda: WassersteinUniformity(M, normalize=False)),
    "of alignment": (Alignment, lambda: Alignment(normalize=False)),
    "t": (lambda: Uniformity(1.0), lambda: Uniformity(2.0)),
    "squared": (lambda: WassersteinUniformity(M), lambda: WassersteinUniformity(M, squared=True)),
    "raw": (Uniformity, lambda: Uniformity(normalize=False)),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("how", ["update", "forward"])
def test_two_metrics_with_different_options_never_share_a_state(pair, how):
    """The first batch makes their states equal: identical views, rows of length 1."""
    make = dict(zip("ab", PAIRS[pair], strict=True))
    together = MetricCollection({name: build() for name, build in make.items()})
    alone = {name: build() for name, build in make.items()}
    unit = nn.functional.normalize(_rows(50))
    for z1, z2 in [(unit, unit), (3 * unit, _rows(50, 7)), (_rows(80, 3), _rows(80, 4))]:
        getattr(together, how if how == "update" else "__call__")(z=z1, z1=z1, z2=z2)
        for metric in alone.values():
            _see(metric, (z1, z2))
    found = together.compute()
    for name, metric in alone.items():
        torch.testing.assert_close(found[name], metric.compute(), rtol=1e-12, atol=1e-12)
    assert abs(found["a"] - found["b"]) > 1e-3
    assert len(together.compute_groups) == 2


def test_two_metrics_with_equal_options_may_share_one():
    together = MetricCollection({"a": Alignment(2), "b": Alignment(2.0)})
    for z1, z2 in _batches():
        together.update(z1, z2)
    assert len(together.compute_groups) == 1 and together.compute()["a"] == together.compute()["b"]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("how", ["update", "forward"])
def test_running_covers_its_window(name, how):
    running, batches = Running(MAKE[name](), window=3), _batches(sizes=(40, 30, 50, 20, 60))
    for i, batch in enumerate(batches):
        arguments = batch if "alignment" in name else batch[:1]
        running.update(*arguments) if how == "update" else running(*arguments)
        window = batches[max(0, i - 2) : i + 1]
        assert running.compute().item() == pytest.approx(_formula(name, window), rel=2e-6), i
    running.reset()
    _see_running(running, name, batches[4])
    assert running.compute().item() == pytest.approx(_formula(name, batches[4:]), rel=2e-6)


def _see_running(running, name, batch):
    running.update(*(batch if "alignment" in name else batch[:1]))


@pytest.mark.parametrize("name", MAKE)
def test_bootstrapper_is_the_metric_of_the_rows_that_it_drew(name):
    batches = _batches(sizes=(60, 90))
    torch.manual_seed(3)
    boot = BootStrapper(MAKE[name](), num_bootstraps=4, raw=True)
    for batch in batches:
        boot.update(*(batch if "alignment" in name else batch[:1]))
    raw = boot.compute()["raw"]
    torch.manual_seed(3)
    drawn = [[] for _ in range(4)]
    for batch in batches:
        for of in drawn:
            picks = torch.arange(len(batch[0])).repeat_interleave(torch.poisson(torch.ones(len(batch[0]))).long())
            of.append(tuple(view[picks] for view in batch))
    for value, of in zip(raw, drawn, strict=True):
        assert value.item() == pytest.approx(_formula(name, of), rel=2e-6)


@pytest.mark.parametrize("name", MAKE)
def test_tracker_keeps_every_epoch_and_knows_the_best(name):
    tracker, epochs = MetricTracker(MAKE[name]()), [_batches()[i : i + 2] for i in range(3)]
    for batches in epochs:
        tracker.increment()
        for z1, z2 in batches:
            z = (z1.requires_grad_(), z2) if "alignment" in name else (z1.requires_grad_(),)
            tracker(*z).sum()
    expected = [_formula(name, [(a.detach(), b) for a, b in batches]) for batches in epochs]
    assert tracker.compute_all().tolist() == pytest.approx(expected, rel=2e-6)
    best = max(expected) if MAKE[name]().higher_is_better else min(expected)
    assert tracker.best_metric() == pytest.approx(best, rel=2e-6)


@pytest.mark.parametrize("name", MAKE)
def test_merged_after_compute_is_computed_anew(name):
    batches = _batches()
    first, second, third = (MAKE[name]() for _ in range(3))
    _see(first, batches[0])
    first.compute()
    for batch in batches[1:3]:
        _see(second, batch)
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(_formula(name, batches[:3]), rel=2e-6)
    _see(third, batches[3])
    states = {key: value for key, value in third.metric_state.items() if key != "options"}
    first.merge_state(states)  # a dict, as torchmetrics takes it, without what only we keep
    assert first.compute().item() == pytest.approx(_formula(name, batches), rel=2e-6)
    empty = MAKE[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns of a compute before an update
        empty.merge_state(first)
        assert empty.compute().item() == pytest.approx(_formula(name, batches), rel=2e-6)
    assert second.compute().item() == pytest.approx(_formula(name, batches[1:3]), rel=2e-6)


def test_merging_other_options_is_refused():
    for first, second in PAIRS.values():
        one, other = first(), second()
        for metric in (one, other):
            _see(metric, _batches()[0])
        before = one.compute().item()
        with pytest.raises(ValueError, match=r"^expected a metric with .*; received "):
            one.merge_state(other)
        with pytest.raises(ValueError, match=r"^expected a metric with .*; received states of other options"):
            one.merge_state(other.metric_state)
        assert one.compute().item() == before
    with pytest.raises(ValueError, match=r"^expected a metric with m=6; received m=5"):
        RankMe(6).merge_state(RankMe(5))
    with pytest.raises(ValueError):
        Alignment().merge_state(Uniformity())


def test_a_buffer_may_be_used_again():
    buffer, whole = torch.empty(64, M), []
    metrics = [Uniformity(), Alignment(), WassersteinUniformity(M), RankMe(M)]
    for seed in range(4):
        buffer.copy_(_rows(64, seed))
        whole.append(buffer.clone())
        for metric in metrics:
            _see(metric, (buffer, buffer.flip(0)))
    buffer.fill_(torch.nan)
    pairs = [(z, z.flip(0)) for z in whole]
    for metric, name in zip(metrics, ("uniformity", "alignment", "w2", "rankme"), strict=True):
        assert metric.compute().item() == pytest.approx(_formula(name, pairs), rel=2e-6)
    view = torch.stack(whole)  # rows of a larger tensor, in inference mode
    with torch.inference_mode():
        metric = Uniformity()
        for z in view:
            metric.update(z * 1.0)
    assert metric.compute().item() == pytest.approx(_formula("uniformity", pairs), rel=2e-6)


@pytest.mark.parametrize("name", MAKE)
def test_copies_after_rows_with_a_gradient(name):
    batches = [(z1.requires_grad_(), z2) for z1, z2 in _batches()]
    metric = MAKE[name]()
    _see(metric, batches[0])
    metric(*(batches[1] if "alignment" in name else batches[1][:1]))
    metric._forward_cache = None  # the last value, which has its gradient
    for twin in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        _see(twin, batches[2])
        detached = [(a.detach(), b) for a, b in batches[:3]]
        assert twin.compute().item() == pytest.approx(_formula(name, detached), rel=2e-6)
    for state in metric.metric_state.values():
        parts = state if isinstance(state, list) else [state]
        assert not any(part.requires_grad for part in parts), "the graph stays alive"


@pytest.mark.parametrize(("metric", "function"), [(Uniformity, uniformity), (Alignment, alignment)])
def test_forward_has_the_gradient_of_its_batch(metric, function):
    metric, (z1, z2) = metric(), _batches(torch.float64)[0]
    views = (z1.requires_grad_(), z2)[: 2 if function is alignment else 1]
    _see(metric, _batches(torch.float64)[1])
    metric(*views).backward()
    torch.testing.assert_close(z1.grad, torch.autograd.grad(function(*views), z1)[0])


@pytest.mark.parametrize("name", MAKE)
def test_plot(name):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric, values = MAKE[name](), []
    for batch in _batches():
        values.append(metric(*(batch if "alignment" in name else batch[:1])))
    for drawn in (metric.plot(), metric.plot(values), metric.plot(metric.compute(), ax=plt.subplots()[1])):
        assert drawn[1].has_data()
    values = [line.get_ydata() for line in metric.plot(values)[1].lines]
    assert any(len(y) == 4 for y in values)
    plt.close("all")


def test_compute_without_rows_names_no_shape():
    for metric, said in [
        (Uniformity(), "expected at least 2 rows before compute; received 0"),
        (Alignment(), "expected at least one pair before compute; received none"),
        (WassersteinUniformity(4), "expected at least 1 row before W2 is computed; received 0 rows"),
        (RankMe(4), "expected at least one row before compute; received none"),
    ]:
        with pytest.raises(ValueError) as error, pytest.warns(UserWarning, match="before"):
            metric.compute()
        assert str(error.value) == said
    one = Uniformity()
    one.update(torch.ones(1, 5))
    with pytest.raises(ValueError, match="^expected at least 2 rows before compute; received 1$"):
        one.compute()
    with pytest.raises(ValueError, match=r"^expected rows with 5 columns; received \(4, 3\)"):
        one.update(torch.ones(4, 3))


# ---- several processes


def _shares(rank):
    """45 rows here, 15 there; then none there, and rows of another type."""
    out = {}
    for name, make in MAKE.items():
        metric = make()
        for z1, z2 in (
            [(_rows(30), _rows(30, 1)), (_rows(15, 2), _rows(15, 3))] if rank == 0 else [(_rows(15, 4), _rows(15, 5))]
        ):
            _see(metric, (z1, z2))
        out[name] = (
            metric.compute().item(),
            metric(*(_batches()[rank] if "alignment" in name else _batches()[rank][:1])).item(),
        )
        metric = make()
        if rank == 0:
            _see(metric, (_rows(30), _rows(30, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out[name, "none there"] = metric.compute().item()
    mixed = Uniformity()
    mixed.update(_rows(20, rank, torch.bfloat16 if rank else torch.float64))
    out["mixed"] = mixed.compute().item()
    running = Running(Uniformity(), window=2)
    for seed in range(3):
        running.update(_rows(10 + rank, seed + 10 * rank))
    out["running"] = running.compute().item()
    for rows in (_rows(4, m=3 + rank), None):
        wrong = Uniformity()
        if rows is not None:
            wrong.update(rows)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrong.compute()
        except ValueError as error:
            out["none at all" if rows is None else "other columns"] = str(error)
    return out


def test_uneven_shares_of_rows():
    here = [(_rows(30), _rows(30, 1)), (_rows(15, 2), _rows(15, 3))]
    there = [(_rows(15, 4), _rows(15, 5))]
    for rank, out in enumerate(run_ranks(_shares)):
        for name in MAKE:
            whole, batch = out[name]
            assert whole == pytest.approx(_formula(name, here + there), rel=2e-6)
            assert batch == pytest.approx(_formula(name, _batches()[rank : rank + 1]), rel=2e-6)
            assert out[name, "none there"] == pytest.approx(_formula(name, here[:1]), rel=2e-6)
        mixed = [(_rows(20, 0), _rows(20, 0)), (_rows(20, 1, torch.bfloat16), _rows(20, 1))]
        assert out["mixed"] == pytest.approx(_formula("uniformity", mixed), rel=2e-6)
        window = [(_rows(10 + r, seed + 10 * r),) * 2 for r in (0, 1) for seed in (1, 2)]
        assert out["running"] == pytest.approx(_formula("uniformity", window), rel=2e-6)
        assert out["other columns"] == "expected rows of as many columns on each process; received 3, 4"
        assert out["none at all"] == "expected at least 2 rows before compute; received 0"


# ---- global switches, other tensors


def _readings():
    torch.manual_seed(0)
    z = _rows(3000, m=64)
    y = torch.arange(3000) % 5
    z = z + 0.5 * nn.functional.one_hot(y, 64)
    from wssl.evaluation import knn_accuracy
    from wssl.metrics import cluster_scores, discriminant_spectrum, lidar, silhouettes

    wide = _rows(40, m=1024)
    found = {
        "uniformity": uniformity(z),
        "uniformity, with gradient": uniformity(z.clone().requires_grad_()).detach(),
        "w2": wasserstein_uniformity(z),
        "w2, with gradient": wasserstein_uniformity(z.clone().requires_grad_()).detach(),
        "w2, wide": wasserstein_uniformity(wide.clone().requires_grad_()).detach(),
        "spectrum": singular_spectrum(z),
        "rankme": rankme(z),
        "moments": Moments(64).update(z).cov,
        "moments, small": Moments(64).update(z[:100]).cov,
        "silhouette": silhouettes(z[:500], y[:500]),
        "lidar": lidar(z.view(1500, 2, 64)),
        "discriminant": discriminant_spectrum(z.view(600, 5, 64)),
        "clusters": torch.tensor([cluster_scores(z[:400], y[:400]).ari]),
        "diagnosis": torch.tensor([float(v.value) for v in diagnose(z, labels=y).values.values()]),
        "knn": torch.tensor([knn_accuracy(z[:2000], y[:2000], z[2000:], y[2000:], k) for k in (1, 5, 50)]),
    }
    for name, metric in {"L_U": Uniformity(), "W2": WassersteinUniformity(64), "RankMe": RankMe(64)}.items():
        metric.update(z)
        found[name] = metric.compute()
    return found


SWITCHES = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "mkldnn bf16": lambda: setattr(torch.backends.mkldnn, "fp32_precision", "bf16"),
    "mkldnn.matmul bf16": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.fixture(scope="module")
def plain():
    assert not rounds_products(torch.zeros(1))
    return _readings()


@pytest.mark.parametrize("switch", SWITCHES)
def test_global_switches_change_no_digit(plain, switch):
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    try:
        SWITCHES[switch]()
        assert rounds_products(torch.zeros(1)) and not rounds_products(torch.zeros(1, dtype=torch.float64))
        found = _readings()
    finally:
        torch.set_float32_matmul_precision("highest")  # sets the switch of oneDNN to "ieee", which would be stronger
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.mkldnn.fp32_precision = "none"
    assert not rounds_products(torch.zeros(1))
    for name, value in plain.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_dtensor_and_vmap_get_one_sentence(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    z, readings = _rows(40), [uniformity, wasserstein_uniformity, singular_spectrum, rankme, diagnose]
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/meeting")
    try:
        spread = distribute_tensor(z, init_device_mesh("cpu", (1,)), [Shard(0)])
        updates = [Uniformity().update, WassersteinUniformity(M).update, RankMe(M).update, Moments(M).update]
        for call in [*readings, *updates, lambda d: alignment(d, d), lambda d: Alignment().update(d, d)]:
            with pytest.raises(ValueError, match=r"^expected .* as a tensor of this process .*; received a DTensor$"):
                call(spread)
    finally:
        dist.destroy_process_group()
    for call in [*readings, Moments(M).update]:
        with pytest.raises(
            ValueError, match=r"^expected .*; received a (batch of torch.func.vmap|call inside torch.func)"
        ):
            torch.func.vmap(call)(torch.stack([z, z]))
    for call in (uniformity, wasserstein_uniformity):
        with pytest.raises(ValueError, match=r"^expected .* of one matrix, .*; received a call inside torch.func$"):
            torch.func.grad(call)(z)
    per_sample = torch.func.vmap(alignment)(torch.stack([z, 2 * z]), torch.stack([z.flip(0), z]))
    torch.testing.assert_close(per_sample, torch.stack([alignment(z, z.flip(0)), alignment(2 * z, z)]))


def test_running_sums_of_the_balancers_stay_wide():
    """The same fault elsewhere: in bfloat16 a step of a thousandth moves nothing."""
    for make, feed in [
        (lambda: ClusterBalancer(8), lambda b: b.update(torch.zeros(4, dtype=torch.long))),
        (lambda: Centering(8, momentum=0.999), lambda c: c.update(_rows(16, m=8))),
    ]:
        plain, cast = make(), make()
        for _ in range(50):
            nn.ModuleList([cast]).to(torch.bfloat16)
            feed(plain)
            feed(cast)
            cast.half()
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(cast.state_dict()[name], value, rtol=0, atol=0)
        assert next(iter(make().double().state_dict().values())).dtype == torch.float64


def test_multioutput_wrapper_is_refused_in_our_words():
    wrapper = MultioutputWrapper(Uniformity(), 2, output_dim=1, squeeze_outputs=True, remove_nans=False)
    with pytest.raises(ValueError, match=r"^expected embeddings to be a matrix \(n, m\); received shape"):
        wrapper.update(_rows(8, m=2))
