"""What each method promises: which networks it has, which of them get a gradient, and that the loss is its formula."""

import pytest
import torch
from torch import nn

from wssl.losses import byol_loss, nt_xent, w2_of_views
from wssl.methods import BYOL, AlignW2, SimCLR
from wssl.metrics import alignment
from wssl.models import encoder, initialised_from

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


@pytest.mark.parametrize("options", [AlignW2(**SMALL), SimCLR(**SMALL), BYOL(**SMALL)], ids=lambda o: type(o).__name__)
def test_output_is_complete_and_nothing_is_shared(options, views):
    method = _build(options)
    output = method(views)
    assert output.loss.ndim == 0 and output.loss.requires_grad
    assert [tuple(t.shape) for t in (*output.z, *output.h)] == [(8, 16)] * 2 + [(8, method.encoder.out_dim)] * 2
    assert not any(value.requires_grad for value in output.terms.values())
    pointers = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers)), "safetensors refuses tensors that share memory"


@pytest.mark.parametrize("options", [AlignW2(weight=-1), BYOL(momentum=1.5), SimCLR(temperature=0)])
def test_impossible_options_are_one_sentence(options, views):
    with pytest.raises(ValueError, match=r"^expected .*; received "):
        _build(options)(views)
