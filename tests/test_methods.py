"""What each method promises: which networks it has, which of them get a gradient, and that the loss is its formula."""

import pytest
import torch
from torch import nn

from wssl.losses import (
    barlow_twins_loss,
    byol_loss,
    info_nce,
    lu_of_views,
    nt_xent,
    simsiam_loss,
    w2_of_views,
    zero_fcl_loss,
    zero_icl_loss,
)
from wssl.methods import (
    BYOL,
    METHODS,
    NNCLR,
    WMSE,
    AlignSliced,
    AlignUniform,
    AlignW2,
    BarlowTwins,
    DirectCLR,
    LeJEPA,
    MoCoV2,
    SimCLR,
    SimSiam,
    VICReg,
    VISReg,
    ZeroCL,
)
from wssl.metrics import alignment, wasserstein_uniformity
from wssl.models import Queue, encoder, initialised_from

SMALL = dict(hidden=32, out=16)


def _build(options):
    with initialised_from(0, "test"):
        return options.build(encoder("small", width=4))


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(8, 3, 16, 16, generator=generator) for _ in range(2))


def test_align_w2_has_an_encoder_and_a_projector_and_nothing_else(views):
    method = _build(AlignW2(weight=1.5, **SMALL))
    assert [name for name, _ in method.named_children()] == ["encoder", "projector"]
    output = method(views)
    expected = alignment(*output.z) + 1.5 * w2_of_views(*output.z)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    for z in output.z:
        assert z.shape == (8, 16)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert not any("target" in name or "predictor" in name for name, _ in method.named_modules())


def test_align_w2_gradient_reaches_the_encoder_through_both_views(views):
    method = _build(AlignW2(**SMALL))
    inputs = tuple(x.clone().requires_grad_() for x in views)
    method(inputs).loss.backward()
    assert all(x.grad.abs().sum() > 0 for x in inputs)


def test_align_w2_with_weight_0_lets_no_nan_through(views):
    method = _build(AlignW2(weight=0.0, **SMALL))
    output = method(views)
    assert set(output.terms) == {"alignment_term"}
    torch.testing.assert_close(output.loss, alignment(*output.z))


def test_simclr_is_nt_xent_of_both_views_in_one_batch(views):
    method = _build(SimCLR(temperature=0.3, **SMALL))
    output = method(views)
    together = method.projector(method.encoder(torch.cat(views)))
    torch.testing.assert_close(torch.cat(output.z), together)
    torch.testing.assert_close(output.loss, nt_xent(*together.chunk(2), 0.3))


def test_byol_target_gets_no_gradient_and_only_follows(views):
    method = _build(BYOL(momentum=0.9, momentum_end=0.9, **SMALL))
    inputs = tuple(x.clone().requires_grad_() for x in views)
    output = method(inputs)
    output.loss.backward()
    assert not any(p.requires_grad for p in method.target.parameters())
    assert all(p.grad is None for p in method.target.parameters())
    assert all(
        p.grad is not None for part in (method.encoder, method.projector, method.predictor) for p in part.parameters()
    )
    before = [p.clone() for p in method.target.parameters()]
    online = [p for part in (method.encoder, method.projector) for p in part.parameters()]
    with torch.no_grad():
        for p in online:
            p.add_(1.0)
    method.after_step(0.3)
    for old, p, new in zip(before, online, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * p.detach())


def test_byol_adds_both_directions(views):
    method = _build(BYOL(**SMALL)).eval()
    output = method(views)
    p1, p2 = (method.predictor(z) for z in output.z)
    t1, t2 = (method.target(x) for x in views)
    torch.testing.assert_close(output.loss, byol_loss(p1, t2) + byol_loss(p2, t1))


def test_byol_momentum_ends_where_it_should():
    method = _build(BYOL(momentum=0.5, momentum_end=1.0, **SMALL))
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    method.after_step(1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, method.target.parameters(), strict=True))


def test_byol_without_its_asymmetry_has_no_second_network_and_open_gradients(views):
    method = _build(BYOL(predictor=False, stop_gradient=False, **SMALL))
    assert method.target is None and isinstance(method.predictor, nn.Identity)
    output = method(views)
    torch.testing.assert_close(output.loss, 2 * byol_loss(*output.z, stop_gradient=False))
    method.after_step(0.5)


def test_moco_asks_both_views_against_the_queue_of_before(views):
    method = _build(MoCoV2(queue=20, temperature=0.3, **SMALL)).eval()
    before = method.queue.rows.clone()
    output = method(views)
    q1, q2 = output.z
    k1, k2 = (method.target(x) for x in views)
    expected = info_nce(q1, k2, before, 0.3) + info_nce(q2, k1, before, 0.3)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert torch.equal(method.queue.rows, before), "the keys of a step are not their own negatives"
    method.after_step(0.5)
    torch.testing.assert_close(method.queue.rows[:16], nn.functional.normalize(torch.cat([k1, k2])))
    assert torch.equal(method.queue.rows[16:], before[16:])


def test_moco_momentum_rises_along_a_cosine():
    method = _build(MoCoV2(queue=8, momentum=0.5, momentum_end=0.9, **SMALL))
    method.fresh = (torch.ones(2, 16), torch.ones(2, 16))
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.projector.parameters()):
            p.add_(1.0)
    method.after_step(0.5)
    for old, new in zip(before, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.3)


@pytest.mark.parametrize("size", [3, 7, 10, 11])
def test_queue_keeps_the_newest_rows_in_a_ring(size):
    """Against a list that forgets from the front, in whatever chunks the rows come; more than it holds as well."""
    queue, seen = Queue(size, 4), []
    generator = torch.Generator().manual_seed(0)
    for count in (2, 5, 1, 12, 3):
        rows = torch.randn(count, 4, generator=generator)
        queue.push(rows)
        seen += [row / row.norm() for row in rows]
        newest = torch.stack(seen[-size:])
        found = queue.rows @ newest.T
        assert (found > 1 - 1e-5).sum() == min(size, len(seen))
    assert set(queue.state_dict()) == {"rows", "place"}


def test_redundancy_methods_are_their_losses(views):
    output = (method := _build(BarlowTwins(lambd=0.08, scale=0.1, **SMALL)))(views)
    torch.testing.assert_close(output.loss, barlow_twins_loss(*output.z, 0.08, 0.1))
    apart = [method.projector(method.encoder(x)) for x in views]
    torch.testing.assert_close(output.z, tuple(apart))
    output = _build(ZeroCL(feature=2.0, instance=0.5, **SMALL))(views)
    torch.testing.assert_close(output.loss, 2 * zero_fcl_loss(*output.z) + 0.5 * zero_icl_loss(*output.z))
    assert set(_build(ZeroCL(instance=0.0, **SMALL))(views).terms) == {"feature"}


def test_simsiam_is_half_the_sum_behind_a_stop_gradient(views):
    method = _build(SimSiam(bottleneck=4, **SMALL))
    output = method(views)
    z1, z2 = output.z
    expected = (simsiam_loss(method.predictor(z1), z2) + simsiam_loss(method.predictor(z2), z1)) / 2
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(z1.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert not method.projector[-1].affine


def test_nnclr_takes_neighbours_from_the_queue_as_constants(views):
    method = _build(NNCLR(queue=12, temperature=0.3, **SMALL))
    output = method(views)
    n1, n2 = (method.queue.rows[(z @ method.queue.rows.T).argmax(1)] for z in output.z)
    p1, p2 = (method.predictor(z) for z in output.z)
    torch.testing.assert_close(output.loss, (info_nce(n1, p2, None, 0.3) + info_nce(n2, p1, None, 0.3)) / 2)
    method.after_step(0.1)
    torch.testing.assert_close(method.queue.rows[:8], nn.functional.normalize(output.z[0].detach()))


def test_align_uniform_is_alignment_and_the_mean_of_both_lu(views):
    output = _build(AlignUniform(weight=0.7, alpha=1.0, t=3.0, **SMALL))(views)
    torch.testing.assert_close(output.loss, alignment(*output.z, alpha=1.0) + 0.7 * lu_of_views(*output.z, 3.0))
    assert set(_build(AlignUniform(weight=0.0, **SMALL))(views).terms) == {"alignment_term"}


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_output_is_complete_and_nothing_is_shared(kind, views):
    fitting = {WMSE: {"out": 4}, DirectCLR: {"share": 1.0}}.get(kind, {})  # more rows than dimensions; all of h
    method = _build(kind(**SMALL | fitting))
    output = method(views)
    assert output.loss.ndim == 0 and output.loss.requires_grad
    dim = method.encoder.out_dim
    m = {WMSE: 4, DirectCLR: dim}.get(kind, 16)
    assert [tuple(t.shape) for t in (*output.z, *output.h)] == [(8, m)] * 2 + [(8, dim)] * 2
    assert not any(value.requires_grad for value in output.terms.values())
    pointers = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers)), "safetensors refuses tensors that share memory"


@pytest.mark.parametrize(
    "options",
    [
        AlignW2(weight=-1),
        BYOL(momentum=1.5),
        SimCLR(temperature=0),
        MoCoV2(momentum=2.0),
        MoCoV2(temperature=0),
        MoCoV2(queue=0),
        BarlowTwins(lambd=-1),
        ZeroCL(feature=0.0, instance=0.0),
        ZeroCL(shrink=2),
        NNCLR(temperature=0),
        AlignUniform(t=0),
        AlignSliced(weight=-1),
        LeJEPA(weight=2),
        VISReg(weight=-1),
        VICReg(0, 0, 0),
        SimSiam(predictor_rate=-1),
        BYOL(predictor_rate=-1),
    ],
)
def test_impossible_options_are_one_sentence(options, views):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        _build(options)(views)


def test_vicreg_is_the_weighted_sum_of_the_public_code(views):
    """Retyped in float64: mean squared error, half of each view's hinge, covariances over n - 1."""
    output = _build(VICReg(invariance=2.0, variance=3.0, covariance=0.5, **SMALL))(views)
    z1, z2 = (z.double() for z in output.z)
    hinge = sum((1 - (z.var(0) + 1e-4).sqrt()).relu().mean() for z in (z1, z2)) / 2
    cov = sum((c := z.T.cov()).square().sum() - c.diagonal().square().sum() for z in (z1, z2)) / z1.shape[1]
    torch.testing.assert_close(output.loss.double(), 2 * (z1 - z2).square().mean() + 3 * hinge + 0.5 * cov)


def test_lejepa_weighs_agreement_with_the_mean_against_sigreg(views):
    """Local crops agree with the mean of the global views, and count as clouds."""
    method = _build(LeJEPA(weight=0.3, slices=16, **SMALL))
    local = tuple(x[..., ::2, ::2] for x in views)
    torch.manual_seed(3)
    output = method((*views, *local))
    every = [*output.z, *(method.projector(method.encoder(x)) for x in local)]
    centre = (every[0] + every[1]) / 2
    agree = torch.stack([(z - centre).square().mean() for z in every]).mean()
    torch.testing.assert_close(output.terms["agreement"], agree.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(output.loss, 0.7 * output.terms["agreement"] + 0.3 * output.terms["spread"])


def test_align_sliced_without_weight_is_alignment(views):
    output = _build(AlignSliced(weight=0.0, **SMALL))(views)
    torch.testing.assert_close(output.loss, alignment(*output.z))


@pytest.mark.parametrize("per_view", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_align_w2_takes_w2_of_what_it_says(views, per_view, corrected):
    options = AlignW2(weight=1.5, per_view=per_view, corrected=corrected, **SMALL | {"out": 4})
    output = _build(options)(views)
    clouds = output.z if per_view else [torch.cat(output.z)]
    expected = torch.stack([wasserstein_uniformity(z.detach().double(), corrected=corrected) for z in clouds]).mean()
    torch.testing.assert_close(output.terms["w2_term"].double(), expected, rtol=1e-4, atol=1e-5)


def test_simsiam_and_byol_without_a_predictor_compare_embeddings(views):
    output = _build(SimSiam(predictor=False, **SMALL))(views)
    z1, z2 = output.z
    expected = (simsiam_loss(z1, z2) + simsiam_loss(z2, z1)) / 2
    torch.testing.assert_close(output.loss, expected)
