"""A sample of the numerical torture (`python -m tests.torture numerics`): every public function is in its table, and keeps its promises on a few extreme inputs."""

from dataclasses import replace

import pytest
import torch

from tests.torture import numerics
from tests.torture.numerics_check import Broken
from tests.torture.numerics_table import SUBJECTS, Case, missing
from wssl.balance import assignment_softness, balanced, spherical_kmeans
from wssl.core.checks import InputError, expect_first_derivative, readable
from wssl.core.rows import normalize_rows, row_lengths
from wssl.losses import (
    WassersteinUniformityLoss,
    barlow_twins_loss,
    byol_loss,
    cholesky_whiten,
    cut_tiles,
    dino_loss,
    info_nce,
    iter_norm,
    local_vicreg,
    standardize_tiles,
    task_loss,
    vicreg_terms,
    zero_fcl_loss,
)
from wssl.metrics import bhattacharyya, gaussian_kl, gaussian_w2, lidar, rankme


def test_every_public_function_is_in_the_table():
    assert missing() == []


# two inputs for all: a large one near the end of its type, a small one with equal rows
EXTREMES = [Case(24, 6, "plain", 20, "float32"), Case(9, 6, "twins", -20, "bfloat16", seed=1)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_promises(name):
    subject = SUBJECTS[name]
    for case in EXTREMES:
        low, high = (subject.reach or numerics.ANY)[case.dtype]
        case = Case(case.n, case.m, case.kind, min(max(low, case.exponent), high), case.dtype, seed=case.seed)
        for label in ("value", "gradient", "invariance", "NaN"):
            if numerics.wanted(subject, label):
                numerics.PROPERTIES[label][0](name, case)
    numerics.PROPERTIES["misfit"][0](name, EXTREMES[0])


@pytest.mark.parametrize(
    "name", ["uniformity", "wasserstein_uniformity: squared", "sigreg_loss", "gaussian_kl", "nt_xent"]
)
def test_second_derivatives_are_right_or_refused(name):
    numerics.PROPERTIES["second"][0](name, Case(7, 3))


def test_the_harness_notices(monkeypatch):
    "A wrong formula, an error of another kind and a silent NaN are each a failure with the call that repeats it."
    subject, call = SUBJECTS["nt_xent"], SUBJECTS["nt_xent"].call
    wrong = {"value": lambda a, b: call(a, b) + 1e-2, "NaN": lambda a, b: call(a, b).nan_to_num(1.0)}
    for label, each in wrong.items():
        monkeypatch.setitem(SUBJECTS, "nt_xent", replace(subject, call=each))
        with pytest.raises(Broken):
            numerics.PROPERTIES[label][0]("nt_xent", Case(8, 4))


# --- what the torture found, one test each --------------------------------------------------------------------------------


def test_a_row_beyond_the_root_of_its_type_is_no_zero_row():
    for dtype, size in ((torch.float32, 1e20), (torch.float64, 1e200), (torch.bfloat16, 1e30)):
        z = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64).mul(size).to(dtype).requires_grad_()
        out = normalize_rows(z)
        torch.testing.assert_close(out[0].double(), torch.tensor([0.6, 0.8], dtype=torch.float64), rtol=4e-3, atol=0)
        assert (out[1] == 0).all()
        out[:, 0].sum().backward()
        assert torch.isfinite(z.grad).all() and (z.grad[1] == 0).all()
    assert row_lengths(torch.full((1, 4), 3e38)).isnan().all()
    assert normalize_rows(torch.tensor([[1.0, torch.inf]])).isnan().all()
    huge = torch.full((2, 3, 4), 1e20)
    assert torch.vmap(row_lengths)(huge).isnan().all()  # where nobody may look: not zero


def test_readable_is_false_where_values_are_traced():
    seen = []
    torch.vmap(lambda z: seen.append(readable(z)) or z)(torch.zeros(2, 3))
    assert seen == [False] and readable(torch.zeros(2)) and not readable(torch.zeros(2, device="meta"))


def test_huge_views_are_not_collapsed_ones():
    z1, z2 = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(0)) * 10
    for loss in (barlow_twins_loss, zero_fcl_loss):
        torch.testing.assert_close(loss(z1 * 1e19, z2 * 1e19), loss(z1, z2), rtol=1e-3, atol=1e-4)
    tiles = torch.randn(2, 9, 1, 4, 4)
    torch.testing.assert_close(standardize_tiles(tiles * 1e21), standardize_tiles(tiles * 1e3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20])
def test_whitening_knows_no_scale(scale):
    z = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    for whiten in (iter_norm, cholesky_whiten):
        torch.testing.assert_close(whiten(z * scale), whiten(z), rtol=1e-4, atol=1e-5)


def test_rounding_of_equal_rows_is_not_whitened():
    z = torch.full((58, 3), 17.3, dtype=torch.float16).requires_grad_()
    out = iter_norm(z)
    out.square().sum().backward()
    assert (out == 0).all() and torch.isfinite(z.grad).all()


def test_covariances_of_independent_coordinates_are_not_negative():
    z = torch.zeros(96, 2)
    z[::2, 0], z[:, 1] = 1e4, 1e-2 * torch.arange(96) % 7
    assert vicreg_terms(z, z)[2] >= 0
    maps = z.view(96, 1, 2).expand(-1, 2, -1)
    assert local_vicreg(maps, maps, matches=1, invariance=0, variance=0) >= 0
    few = torch.eye(5, 9) * 1e4
    assert vicreg_terms(few, few)[2] >= 0


def test_targets_of_half_precision_are_added_in_float32():
    scores = [torch.randn(6, 50, generator=torch.Generator().manual_seed(i)) * 30 for i in range(3)]
    targets = [torch.softmax(each, 1).bfloat16() for each in scores[:2]]
    torch.testing.assert_close(
        dino_loss(scores, targets), dino_loss(scores, [t.float() for t in targets]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("distance", [gaussian_w2, gaussian_kl, bhattacharyya])
def test_a_distance_of_gaussians_has_no_silent_second_derivative(distance):
    a = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cov = (a @ a.T / 9).requires_grad_()
    with pytest.raises(RuntimeError, match="expected a first derivative of a distance of Gaussians"):
        torch.autograd.grad(distance(torch.zeros(4, dtype=torch.float64), cov), cov, create_graph=True)


def test_first_derivative_only():
    with pytest.raises(RuntimeError, match="create_graph=True"):
        expect_first_derivative("it")


VIEWS = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
INFINITE = VIEWS[0].clone().index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.inf))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zero_fcl_loss(INFINITE, VIEWS[1]), "expected finite correlations"),
        (lambda: local_vicreg(INFINITE.view(2, 4, 4), VIEWS[1].view(2, 4, 4)), "expected finite maps"),
        (lambda: info_nce(*VIEWS, negatives=torch.ones(3, 5)), "negatives of 4 columns; received 5"),
        (lambda: dino_loss(list(VIEWS), [VIEWS[0], VIEWS[1][:5]]), "two views of the same shape"),
        (lambda: WassersteinUniformityLoss()(), "the same number of columns"),
        (lambda: WassersteinUniformityLoss()(VIEWS[0], VIEWS[1][:, :3]), "the same number of columns"),
        (lambda: task_loss(VIEWS[0].long(), torch.zeros(8, dtype=torch.long)), "scores .n, k. in floating point"),
        (lambda: cut_tiles(VIEWS[0]), "images .n, c, H, W."),
        (lambda: standardize_tiles(torch.zeros(2, 3, 3, dtype=torch.long)), "in floating point"),
        (lambda: balanced(VIEWS[0], torch.tensor([1, 1, 1, torch.inf])), "expected finite relative sizes"),
        (lambda: assignment_softness(torch.full((2, 2), torch.inf)), "expected finite assignment"),
        (lambda: spherical_kmeans(VIEWS[0] * 1e-14, 2), "rows of a length above 1e-12; received 8 of 8"),
        (lambda: rankme(VIEWS[0].double() * 1e200), "squares float64 can hold"),
        (lambda: lidar(VIEWS.double().unsqueeze(2).expand(-1, -1, 2, -1).flatten(0, 1) * 1e200), "squares float64 can hold"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_no_loss_computes_in_half_precision_under_autocast():
    z1, z2 = VIEWS
    for loss in (barlow_twins_loss, zero_fcl_loss, info_nce, byol_loss):
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(z1, z2)
        assert inside == loss(z1, z2)
