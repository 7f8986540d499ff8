"""The cookbook's methods: networks, losses as formulas in float64, what moves after a step, two processes, one graph."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.distributed import run_ranks
from wssl.core.collectives import sync_batchnorm
from wssl.methods import INTL, WMSE, DeepClusterV2, DirectCLR, MoCoV3, SimDINO
from wssl.models import SmallResNet, encoder, initialised_from
from wssl.training.step import in_bfloat16, in_parallel, objective

SMALL = dict(hidden=32, out=4)
METHODS = {
    "mocov3": MoCoV3(**SMALL),
    "directclr": DirectCLR(share=0.25),
    "directclr-projector": DirectCLR(share=0.5, layers=2, **SMALL),
    "wmse": WMSE(**SMALL),
    "wmse-groups": WMSE(size=6, **SMALL),
    "intl": INTL(trace_weight=0.02, **SMALL),
    "simdino": SimDINO(**SMALL),
    "deepcluster": DeepClusterV2(prototypes=5, memory=30, rounds=20, **SMALL),
}
FOLLOWERS = {
    name: kind(momentum=0.5, momentum_end=0.9, **SMALL) for name, kind in (("mocov3", MoCoV3), ("simdino", SimDINO))
}


def _build(options, dtype=torch.float64):
    """A small one whose second network, if any, is no copy of the first any more, and every layer of which learns."""
    with initialised_from(0, "test"):
        method = options.build(encoder("small", width=4)).to(dtype)
        for p in method.parameters():
            if p.ndim == 1:
                p.data.uniform_(0.2, 1.0)
            elif not p.requires_grad:
                p.data.add_(0.1 * torch.randn_like(p))
    return method


def _views(n=12, local=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    return (*views, *(torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(local)))


def _unit(x):
    return x / x.norm(dim=1, keepdim=True)


def _cross_entropy(queries, keys, tau):
    """Mean over the queries of -log softmax of the own key's cosine among all keys, written out."""
    scores = _unit(queries) @ _unit(keys).T / tau
    return (scores.exp().sum(1).log() - scores.diagonal()).mean()


def _same_gradients(one, two):
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        if a.requires_grad:
            assert (a.grad - b.grad).abs().max() <= 1e-7 * b.grad.abs().max() + 1e-12, name


# ---- one method each


def test_moco_v3_is_two_tau_times_both_directions_against_constant_keys():
    method, views = _build(MoCoV3(temperature=0.3, **SMALL)), _views()
    copied = copy.deepcopy(method)
    output = method(views)
    q1, q2 = (copied.predictor(copied.projector(copied.encoder(x))) for x in views)
    k1, k2 = (copied.target.net(x).detach() for x in views)
    expected = 2 * 0.3 * (_cross_entropy(q1, k2, 0.3) + _cross_entropy(q2, k1, 0.3))
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)


def test_moco_v3_has_no_queue_and_its_embeddings_end_in_a_batchnorm_without_affine():
    method = _build(MoCoV3(**SMALL))
    assert {name for name, _ in method.named_children()} == {"encoder", "projector", "predictor", "target"}
    assert not method.projector[-1].affine
    torch.testing.assert_close(method(_views()).z[0].mean(0), torch.zeros(4).double(), atol=1e-8, rtol=0)
    assert method.evaluated == (method.encoder, method.projector)


def test_directclr_is_half_of_both_directions_on_the_first_units():
    method, views = _build(DirectCLR(temperature=0.2, share=0.25)), _views()
    copied = copy.deepcopy(method)
    output = method(views)
    z1, z2 = (copied.encoder(x)[:, :8] for x in views)
    assert method.encoder.out_dim == 32 and not list(method.projector.parameters())
    expected = (_cross_entropy(z1, z2, 0.2) + _cross_entropy(z2, z1, 0.2)) / 2
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.z, (z1, z2))
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)


def test_directclr_with_layers_has_its_projector_behind_the_units():
    method, views = _build(DirectCLR(share=0.5, layers=2, **SMALL)), _views()
    assert [type(part) for part in method.projector[1:]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert method.projector[1].in_features == 16 and method(views).z[0].shape == (12, 4)
    assert _build(DirectCLR(share=1e-6)).projector[0].count == 1


def _whitened(z):
    """Rows with covariance I, by the inverse of numpy's Cholesky factor."""
    centred = z - z.mean(0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred / (len(z) - 1))).T


@pytest.mark.parametrize("size", [None, 6])
def test_w_mse_is_two_minus_two_cosines_of_the_whitened_rows(size):
    method, views = _build(WMSE(size=size, **SMALL)), _views()
    copied = copy.deepcopy(method)
    output = method(views)
    z = [copied.projector(copied.encoder(x)) for x in views]
    w1, w2 = (torch.cat([_whitened(part) for part in each.split(size or 12)]) for each in z)
    expected = (2 - 2 * (_unit(w1) * _unit(w2)).sum(1)).mean()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)


def test_w_mse_with_a_share_of_the_identity_takes_any_batch():
    views = _views(n=3)
    with pytest.raises(ValueError, match="^expected more than 4 rows to whiten together"):
        _build(WMSE(**SMALL))(views)
    assert _build(WMSE(eps=0.1, size=6, **SMALL))(_views()).loss.isfinite()


def test_intl_is_the_agreement_of_newton_whitened_rows_and_the_trace():
    """Newton's iteration written out, the trace loss with the rule's weight for 64 dimensions."""
    method, views = _build(INTL(iterations=2, hidden=32, out=64)), _views()
    copied = copy.deepcopy(method)
    output, rows = method(views), []
    for x in views:
        z = copied.projector(copied.encoder(x))
        z = z - z.mean(0)
        cov = z.T @ z / 11
        share, p = cov / cov.trace(), torch.eye(64, dtype=z.dtype)
        for _ in range(2):
            p = (3 * p - p @ p @ p @ share) / 2
        rows.append(z @ p / cov.trace().sqrt())
    trace = sum(((1 - each.square().sum(0) / 11) ** 2).sum() for each in rows)
    expected = (2 - 2 * (_unit(rows[0]) * _unit(rows[1])).sum(1)).mean() + 0.03 * trace
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)


def _rate(z, eps):
    """Half the log determinant by eigenvalues."""
    n, m = z.shape
    return torch.linalg.eigvalsh(_unit(z).T @ _unit(z)).mul(m / (n * eps)).log1p().sum() / 2


@pytest.mark.parametrize(("local", "gamma"), [(0, None), (3, None), (0, 0.3), (2, 0.0)])
def test_simdino_follows_the_teacher_and_takes_up_room(local, gamma):
    method, views = _build(SimDINO(eps=0.25, gamma=gamma, **SMALL)), _views(local=local)
    copied = copy.deepcopy(method)
    output = method(views)
    h = torch.cat([copied.encoder(torch.cat(part)) for part in (views[:2], views[2:]) if part])
    z, t = copied.projector(h).split(12), copied.target.net(torch.cat(views[:2])).detach().chunk(2)
    cosines = [(_unit(z[b]) * _unit(t[a])).sum(1).mean() for a in (0, 1) for b in range(len(views)) if a != b]
    weight = (4 + 12) / (4 * 12) if gamma is None else gamma
    expected = -sum(cosines) / len(cosines) - weight * (_rate(z[0], 0.25) + _rate(z[1], 0.25)) / 2
    torch.testing.assert_close(output.loss, expected)
    assert output.terms["rate"].item() == pytest.approx(_rate(z[0], 0.25).item() / (2 * math.log(5)))
    assert method.evaluated == (method.target.net[0], method.target.net[1])
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)


@pytest.mark.parametrize("local", [0, 2])
def test_deepcluster_predicts_the_label_of_the_image_from_every_crop(local):
    """Against cross-entropy with the label that the network of the last clustering gives to both views together, one crop at a time."""
    method, views = _build(METHODS["deepcluster"]), _views(local=local)
    copied = copy.deepcopy(method)
    output = method(views)
    h = torch.cat([copied.encoder(torch.cat(part)) for part in (views[:2], views[2:]) if part])
    centroids = _unit(copied.prototypes.weight)
    scores = (_unit(copied.projector(h)) @ centroids.T).split(12)
    each = [_unit(part) for part in copied.labeller.net(torch.cat(views[:2])).chunk(2)]
    label = ((each[0] + each[1]) / 2 @ centroids.T).argmax(1)
    crops = [(part / 0.1).logsumexp(1) - part[torch.arange(12), label] / 0.1 for part in scores]
    expected = torch.cat(crops).mean()
    torch.testing.assert_close(output.loss, expected)
    alone = [(part @ centroids.T).argmax(1) for part in each]
    assert output.terms["agreement"].item() == pytest.approx((alone[0] == alone[1]).double().mean().item())
    output.loss.backward()
    expected.backward()
    _same_gradients(method, copied)
    assert not any(p.requires_grad for net in (method.prototypes, method.labeller) for p in net.parameters())


def test_deepcluster_starts_from_the_embeddings_of_an_epoch_as_often_as_they_fill_the_memory():
    method = _build(METHODS["deepcluster"])
    batches = [_views(seed=seed) for seed in (0, 1)]
    expected = copy.deepcopy(method)
    rows = torch.cat([_unit(expected.projector(expected.encoder(first))) for first, _ in batches])
    method.start(iter(batches))
    kept = method.memory.rows @ rows.T
    assert (kept.amax(1) > 1 - 1e-9).all() and (kept.amax(0) > 1 - 1e-9).all(), "only embeddings, and each of them"
    nearest = (method.memory.rows @ method.prototypes.weight.T).argmax(1)
    assert set(nearest.tolist()) == set(range(5)) and torch.equal(nearest, method.assign(method.memory.rows))
    for k in range(5):  # each centroid is the direction of its rows' sum, to k-means' last round
        total = method.memory.rows[nearest == k].sum(0)
        assert total / total.norm() @ method.prototypes.weight[k] > 0.99
    online = [p for part in (method.encoder, method.projector) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(method.labeller.parameters(), online, strict=True))


@pytest.mark.parametrize(("rounds", "steps"), [(1, 7), (3, 12), (5, 12), (7, 7), (20, 234), (0, 9)])
def test_deepcluster_clusters_at_the_steps_that_pass_a_round_also_after_a_restart(rounds, steps):
    calls, views = [], _views(n=6)
    options = DeepClusterV2(prototypes=2, memory=12, rounds=rounds, **SMALL)
    method = _build(options)
    for step in range(1, steps + 1):
        if step == steps // 2:
            method = _build(options)  # nothing but weights and buffers outlives a restart
        method.cluster = lambda step=step: calls.append(step)
        method.before_step((step - 0.5) / steps)
        method.fresh = views[0].flatten(1)[:, :4]
        method.after_step(step / steps)
    assert calls == [-(-steps * k // rounds) for k in range(1, rounds + 1)]


def test_deepclusters_labels_stay_until_the_next_clustering():
    method = _build(METHODS["deepcluster"])
    method.before_step(0.21)
    method(_views())
    before = copy.deepcopy((method.labeller.state_dict(), method.prototypes.state_dict()))
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.projector.parameters()):
            p.add_(0.1)
    method.after_step(0.22)
    assert all(torch.equal(a, method.prototypes.state_dict()[key]) for key, a in before[1].items())
    assert all(
        torch.equal(a, b) for a, b in zip(before[0].values(), method.labeller.state_dict().values(), strict=True)
    )
    method(_views())
    method.cluster()
    assert not torch.equal(before[1]["weight"], method.prototypes.weight)
    online = [p for part in (method.encoder, method.projector) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(method.labeller.parameters(), online, strict=True))


# ---- all of them


@pytest.mark.parametrize("name", METHODS)
def test_output_is_complete_and_every_trained_parameter_learns(name):
    method = _build(METHODS[name])
    output = method(_views())
    width = method.projector(output.h[0]).shape[1]
    assert (
        output.loss.ndim == 0 and [tuple(t.shape) for t in (*output.z, *output.h)] == [(12, width)] * 2 + [(12, 32)] * 2
    )
    assert not any(value.requires_grad for value in output.terms.values())
    output.loss.backward()
    for key, p in method.named_parameters():
        assert not p.requires_grad or (p.grad.isfinite().all() and p.grad.abs().max() > 0), key
    pointers = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers)), "safetensors refuses tensors that share memory"


@pytest.mark.parametrize("name", FOLLOWERS)
def test_the_target_has_no_gradient_and_follows_along_a_cosine(name):
    method = _build(FOLLOWERS[name])
    inputs = tuple(x.requires_grad_() for x in _views())
    method(inputs).loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in method.target.parameters())
    online = [p.detach().clone() for part in (method.encoder, method.projector) for p in part.parameters()]
    before = [p.clone() for p in method.target.parameters()]
    method.after_step(0.5)  # halfway between 0.5 and 0.9
    for old, p, new in zip(before, online, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, 0.7 * old + 0.3 * p)
    before = [p.clone() for p in method.target.parameters()]
    method.after_step(1.0)
    for old, p, new in zip(before, online, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * p)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_networks_give_a_float32_loss_near_the_exact_one(name):
    found = []
    for change in (lambda method: method, in_bfloat16):
        method = change(_build(METHODS[name], torch.float32))
        found.append(method(tuple(x.float() for x in _views())).loss)
    assert found[1].dtype == torch.float32
    assert found[1].item() == pytest.approx(found[0].item(), rel=0.05)


# ---- two processes


def _step(net, method, views):
    output = net(views)
    output.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    method.after_step(0.5)
    return {"loss": output.loss.detach(), **output.terms}, gradients, dict(method.state_dict())


def _on_a_rank(rank):
    found = {}
    for name, options in METHODS.items():
        method = sync_batchnorm(_build(options))
        mine = tuple(x[rank * 6 : rank * 6 + 6] for x in _views())
        found[name] = _step(in_parallel(method), method, mine)
    return found


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(_on_a_rank)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one_on_the_whole_batch(ranks, name):
    method = _build(METHODS[name])
    terms, gradients, state = _step(method, method, _views())
    for key, value in terms.items():
        assert sum(each[name][0][key] for each in ranks).item() / 2 == pytest.approx(value.item(), rel=1e-7), key
    for each in ranks:
        for key, grad in gradients.items():
            assert (each[name][1][key] - grad).abs().max() <= 1e-6 * grad.abs().max() + 1e-12, key
        for key, value in state.items():
            torch.testing.assert_close(each[name][2][key], value, rtol=1e-6, atol=1e-9, msg=key)


# ---- one graph, bad input


@pytest.mark.parametrize("name", METHODS)
def test_it_traces_into_one_graph(name):
    torch.compiler.reset()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True, dynamic=False)
    views, found = tuple(x.float() for x in _views()), []
    for function in (objective, compiled):
        with initialised_from(0, "tiny"):
            method = METHODS[name].build(SmallResNet(width=8, blocks=(1,)))
        loss, terms, _ = function(method, views, "none", 0.0)
        loss.backward()
        found.append([loss.detach(), *terms.values(), *(p.grad for p in method.parameters() if p.requires_grad)])
        method.after_step(0.5)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        MoCoV3(momentum=1.5),
        MoCoV3(momentum_end=-0.1),
        MoCoV3(temperature=0),
        DirectCLR(temperature=-1),
        DirectCLR(share=0),
        DirectCLR(share=1.1),
        DirectCLR(layers=-1),
        WMSE(size=64),
        WMSE(eps=1.5),
        INTL(iterations=-1),
        INTL(trace_weight=-0.1),
        SimDINO(momentum=2),
        SimDINO(eps=0),
        SimDINO(gamma=-1),
        DeepClusterV2(temperature=0),
        DeepClusterV2(rounds=-1),
        DeepClusterV2(memory=10),
    ],
    ids=str,
)
def test_impossible_options_are_one_sentence(options):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        options.build(encoder("small", width=4))
