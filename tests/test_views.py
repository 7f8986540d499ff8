"""The batched views against torchvision's and PIL's transforms: given parameters exactly, drawn parameters in distribution."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from wssl.core.checks import InputError
from wssl.core.seeds import generator
from wssl.data import views as module
from wssl.data.images import synthetic
from wssl.data.views import (
    DIGITS,
    DRAWS,
    PRESETS,
    SMALL,
    W2_PAPER,
    Augmentation,
    TwoViews,
    augment,
    crop_boxes,
    draw,
    plain_view,
)

IMAGES = synthetic("test").subset(2).x  # (20, 3, 32, 32)
X = IMAGES.float() / 255
MODES = {"bicubic": TF.InterpolationMode.BICUBIC, "bilinear": TF.InterpolationMode.BILINEAR}
seeds = st.integers(0, 2**31)


def uniforms(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def each(function, x, *parameters):
    """`function` on one image after the other, as a pipeline over single images does it."""
    columns = [p.tolist() if isinstance(p, torch.Tensor) else p for p in parameters]
    return torch.stack([function(*args) for args in zip(x, *columns, strict=True)])


def pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# ---- given parameters


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.integers(9, 50),
    st.integers(9, 50),
    st.sampled_from([8, 24, 32]),
    st.sampled_from(["bicubic", "bilinear"]),
)
def test_crop_resize_flip_is_torchvisions(seed, height, width, size, interpolation):
    """Larger and smaller crops than the output, so with and without antialiasing at work; 1e-5 in [0, 1]."""
    u, x = uniforms(seed, 6, 5), uniforms(seed + 1, 6, 3, height, width)
    h, w = 1 + (u[:, 0] * height).long(), 1 + (u[:, 1] * width).long()
    top, left = (u[:, 2] * (height - h + 1)).long(), (u[:, 3] * (width - w + 1)).long()
    box, flip = torch.stack([top, left, h, w], 1), u[:, 4] < 0.5

    def theirs(xi, b, f):
        xi = TF.resized_crop(xi, *b, [size, size], MODES[interpolation], antialias=True).clamp(0, 1)
        return TF.horizontal_flip(xi) if f else xi

    ours = module.crop_resize_flip(x, box.float(), flip, size, interpolation)
    torch.testing.assert_close(ours, each(theirs, x, box, flip), rtol=0, atol=1e-5)


def test_crop_is_pils_within_its_rounding():
    """PIL rounds after each of its two passes, and cuts the cubic's overshoot there too: so on soft contrasts, where none is cut."""
    soft = IMAGES // 2 + 64
    box = torch.tensor([[k % 7, k % 11, 20 - k % 5, 14 + k % 7] for k in range(20)])
    ours = module.crop_resize_flip(soft.float() / 255, box.float(), torch.zeros(20).bool(), 32)
    theirs = each(lambda x, b: from_pil(TF.resized_crop(pil(x), *b, [32, 32], MODES["bicubic"])), soft, box)
    assert (ours - theirs).abs().max() <= 2 / 255


ADJUST = {
    "brightness": (module.brightness, TF.adjust_brightness, (0.0, 2.0)),
    "contrast": (module.contrast, TF.adjust_contrast, (0.0, 2.0)),
    "saturation": (module.saturation, TF.adjust_saturation, (0.0, 2.0)),
    "hue": (module.hue, TF.adjust_hue, (-0.5, 0.5)),
}


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(sorted(ADJUST)), st.booleans())
def test_colour_is_torchvisions(seed, name, coarse):
    """Also on 16 levels, where channels tie and pixels are grey; 2e-5 in [0, 1]."""
    ours, theirs, (low, high) = ADJUST[name]
    x, factor = uniforms(seed, 8, 3, 9, 7), low + (high - low) * uniforms(seed + 1, 8)
    x = (x * 4).round() / 4 if coarse else x
    before = x.clone()
    torch.testing.assert_close(ours(x, factor), each(theirs, x, factor), rtol=0, atol=2e-5)
    assert torch.equal(x, before), "an operation changed its input"


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_jitter_takes_each_images_own_order(seed, with_hue):
    u = uniforms(seed, 24, 4)
    factors = torch.cat([0.4 + 1.2 * u[:, :3], u[:, 3:] - 0.5], 1)
    order, x = uniforms(seed + 1, 24, 4).argsort(1), uniforms(seed + 2, 24, 3, 5, 6)
    steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]

    def theirs(xi, f, o):
        for k in o:
            xi = steps[k](xi, f[k]) if k < 3 or with_hue else xi
        return xi

    torch.testing.assert_close(
        module.color_jitter(x, factors, order, with_hue), each(theirs, x, factors, order), rtol=0, atol=1e-4
    )


def test_order_matters():
    factors, x = torch.tensor([[1.4, 1.4, 0.3, 0.4]]).expand(24, 4), X[:1].expand(24, -1, -1, -1)
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(o.tolist())) == 4 for o in orders]]
    results = module.color_jitter(x, factors, orders).flatten(1)
    apart = torch.cdist(results, results)[~torch.eye(24, dtype=torch.bool)]
    assert (apart > 1e-3).float().mean() > 0.9


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([3, 5, 13]))
def test_blur_is_torchvisions(seed, width):
    x, sigma = uniforms(seed, 5, 3, 16, 11), 0.1 + 1.9 * uniforms(seed + 1, 5)
    theirs = each(lambda xi, s: TF.gaussian_blur(xi, [width, width], [s, s]), x, sigma)
    torch.testing.assert_close(module.gaussian_blur(x, sigma, width), theirs, rtol=0, atol=1e-5)


def test_blur_of_the_paper_is_near_pils():
    """PIL approximates the Gaussian by three box blurs, well from a radius of 0.6 on: 8/255 inside, 1/255 on average."""
    sigma = torch.linspace(0.6, 2, 20)
    theirs = each(lambda x, s: from_pil(pil(x).filter(ImageFilter.GaussianBlur(s))), IMAGES, sigma)
    apart = (module.gaussian_blur(X, sigma, W2_PAPER.blur_kernel) - theirs).abs()[:, :, 6:-6, 6:-6]
    assert apart.max() < 8 / 255 and apart.mean() < 1 / 255
    cut = (module.gaussian_blur(X, sigma, 3) - theirs).abs()[:, :, 6:-6, 6:-6]
    assert cut.max() > 60 / 255 and cut.mean() > 5 / 255, "a 3 by 3 kernel would have passed as well"


def test_solarize_and_gray_are_pils():
    ours, everyone = module.solarize(X, torch.ones(20).bool()), torch.ones(20).bool()
    torch.testing.assert_close(
        ours, each(lambda x: from_pil(ImageOps.solarize(pil(x), 128)), IMAGES), rtol=0, atol=1e-6
    )
    gray = module.grayscale(X, everyone)
    theirs = each(lambda x: from_pil(pil(x).convert("L").convert("RGB")), IMAGES)
    assert (gray - theirs).abs().max() <= 1.5 / 255
    some = torch.arange(20) % 2 == 0
    mixed = module.solarize(X, some)
    assert torch.equal(mixed[1::2], X[1::2]) and torch.equal(mixed[::2], ours[::2])


def test_neutral_parameters_change_nothing():
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(20, 4)
    for ours in (
        module.crop_resize_flip(X, box, torch.zeros(20).bool(), 32),
        module.color_jitter(X, torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(20, 4), torch.rand(20, 4).argsort(1)),
        module.gaussian_blur(X, torch.zeros(20), 13),
        module.grayscale(X, torch.zeros(20).bool()),
    ):
        torch.testing.assert_close(ours, X, rtol=0, atol=1e-5)


# ---- drawn parameters


def ks(a, b):
    return ks_2samp(np.asarray(a), np.asarray(b), method="asymp").pvalue


@pytest.mark.parametrize("height,width,scale", [(32, 32, (0.08, 1.0)), (20, 60, (0.5, 1.0)), (48, 32, (0.9, 1.0))])
def test_boxes_are_drawn_as_torchvisions(height, width, scale):
    """Also images of other shapes, where attempts fail and the box in the middle is taken."""
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(32, scale)
    image = torch.empty(3, height, width)
    made = [theirs.make_params([image]) for _ in range(4000)]
    made = np.array([[m["top"], m["left"], m["height"], m["width"]] for m in made])
    u = draw(4000, generator(0, "boxes"))
    ours = crop_boxes(u[:, :10], u[:, 10:20], u[:, 20:22], height, width, replace(W2_PAPER, scale=scale)).numpy()
    assert (
        (ours[:, :2] >= 0).all()
        and (ours[:, 0] + ours[:, 2] <= height).all()
        and (ours[:, 1] + ours[:, 3] <= width).all()
    )
    for column in range(4):
        assert ks(ours[:, column], made[:, column]) > 1e-3
    assert ks(ours[:, 2] * ours[:, 3], made[:, 2] * made[:, 3]) > 1e-3
    fallback = (made[:, 2] * made[:, 3] == np.bincount(made[:, 2] * made[:, 3]).argmax()).mean()
    assert scale[0] < 0.5 or fallback > 0.05, "no box in the middle among them"


def torchvision_pipeline(a):
    """The W2 paper's pipeline over single PIL images."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(a.size, a.scale, interpolation=MODES[a.interpolation]),
            v2.RandomApply([v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], a.p_jitter),
            v2.RandomGrayscale(a.p_gray),
            v2.RandomApply([v2.GaussianBlur(a.blur_kernel, a.sigma)], a.p_blur),
            v2.RandomSolarize(128, a.p_solarize),
            v2.RandomHorizontalFlip(a.p_flip),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(a.mean, a.std),
        ]
    )


def statistics(views):
    """Per image: means and deviations of the channels, edges, left against right, grey pixels, share of the darkest and brightest."""
    gray = views.mean(1)
    columns = {f"mean{k}": views[:, k].mean((1, 2)) for k in range(3)} | {
        f"std{k}": views[:, k].std((1, 2)) for k in range(3)
    }
    columns["edges"] = gray.diff(dim=2).abs().mean((1, 2))
    columns["sides"] = gray[:, :, :16].mean((1, 2)) - gray[:, :, 16:].mean((1, 2))
    columns["colour"] = (views.amax(1) - views.amin(1)).mean((1, 2))
    columns["dark"], columns["bright"] = (gray < -1).float().mean((1, 2)), (gray > 1).float().mean((1, 2))
    return columns


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    pipeline, images = torchvision_pipeline(W2_PAPER), [pil(image) for image in IMAGES[:6:3]]
    return [statistics(torch.stack([pipeline(image) for _ in range(1000)])) for image in images]


def smallest_p(theirs, augmentation, seed=0):
    values = []
    for k, reference in enumerate(theirs):
        batch = IMAGES[3 * k : 3 * k + 1].expand(1000, -1, -1, -1)
        ours = statistics(augment(batch, draw(1000, generator(seed, "distribution", k)), augmentation))
        values += [ks(ours[name], reference[name]) for name in reference]
    return min(values)


def test_the_whole_pipeline_has_torchvisions_distribution(theirs):
    """22 Kolmogorov-Smirnov tests of 1000 views of one image each; the seeds are fixed, the smallest p above 0.001."""
    assert smallest_p(theirs, W2_PAPER) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        dict(scale=(0.4, 1.0)),
        dict(p_jitter=0.6),
        dict(p_gray=0.1),
        dict(p_blur=0.3),
        dict(p_solarize=0.1),
        dict(brightness=0.6),
        dict(contrast=0.8),
        dict(sigma=(0.1, 1.0)),
        dict(p_flip=0.2),
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_that_comparison_sees_a_wrong_parameter(theirs, wrong):
    assert smallest_p(theirs, replace(W2_PAPER, **wrong)) < 1e-3


# ---- every image its own draw


@pytest.mark.parametrize("name", PRESETS)
def test_a_view_depends_on_its_own_row_only(name):
    u, shuffle = draw(20, generator(0, "rows")), torch.randperm(20, generator=generator(0, "shuffle"))
    together = augment(IMAGES, u, PRESETS[name])
    torch.testing.assert_close(
        augment(IMAGES[shuffle], u[shuffle], PRESETS[name]), together[shuffle], rtol=0, atol=2e-5
    )
    torch.testing.assert_close(augment(IMAGES[3:4], u[3:4], PRESETS[name]), together[3:4], rtol=0, atol=2e-5)


def test_draws_are_uniform_and_each_is_read():
    u = draw(3000, generator(0, "uniform"))
    assert u.shape == (3000, sum(DRAWS.values())) and u.min() >= 0 and u.max() < 1
    assert len(u.unique(dim=0)) == 3000
    base, a = draw(20, generator(0, "read")), replace(W2_PAPER, p_jitter=1.0, p_blur=1.0, scale=(0.5, 1.0))
    at = 0
    for name, count in DRAWS.items():
        other = base.clone()
        other[:, at : at + count] = draw(20, generator(1, "read"))[:, at : at + count]
        at += count
        if name in ("jitter", "blur"):
            continue  # these are always on here
        assert not torch.equal(augment(IMAGES, other, a), augment(IMAGES, base, a)), name


def test_two_views_are_a_function_of_seed_epoch_and_step():
    views = TwoViews(SMALL)
    x1, x2 = views(IMAGES, generator(0, "views", 3, 5))
    again = views(IMAGES, generator(0, "views", 3, 5))
    assert torch.equal(x1, again[0]) and torch.equal(x2, again[1])
    assert not torch.equal(x1, x2) and not torch.equal(x1, views(IMAGES, generator(0, "views", 3, 6))[0])
    assert x1.dtype == torch.float32 and x1.shape == (20, 3, 32, 32) and not x1.requires_grad
    asymmetric = TwoViews(SMALL, replace(SMALL, size=16))(IMAGES, generator(0, "views", 3, 5))
    assert torch.equal(asymmetric[0], x1) and asymmetric[1].shape == (20, 3, 16, 16)


def test_digits_are_never_mirrored():
    left = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    left[..., :16] = 255
    a = replace(DIGITS, p_blur=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    view = TwoViews(a)(left, generator(0, "mirror"))[0]
    assert (view[..., 0] > view[..., -1]).all()


def test_an_autocast_region_does_not_coarsen_the_colours():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = TwoViews(W2_PAPER)(IMAGES, generator(0, "autocast"))
    outside = TwoViews(W2_PAPER)(IMAGES, generator(0, "autocast"))
    assert inside[0].dtype == torch.float32 and torch.equal(inside[0], outside[0])


# ---- nothing waits for the device


@pytest.mark.parametrize("name", PRESETS)
def test_no_value_is_read_on_the_host(name):
    """On the meta device there are no values to read: a branch on one, or a copy to the host, raises."""
    u = torch.empty(7, sum(DRAWS.values()), device="meta")
    assert augment(torch.empty(7, 3, 32, 32, dtype=torch.uint8, device="meta"), u, PRESETS[name]).shape == (
        7,
        3,
        32,
        32,
    )


def test_the_pipeline_is_one_graph():
    u = draw(20, generator(0, "graph"))
    traced = torch.compile(augment, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(IMAGES, u, W2_PAPER), augment(IMAGES, u, W2_PAPER))


# ---- evaluation's view, and what is refused


def test_plain_view_is_torchvisions_evaluation_transform():
    norm = v2.Normalize(W2_PAPER.mean, W2_PAPER.std)
    torch.testing.assert_close(plain_view(IMAGES, W2_PAPER), norm(X))
    wide = (uniforms(0, 4, 3, 40, 64) * 255).byte()
    square = TF.resize(TF.center_crop(wide.float() / 255, [40, 40]), [32, 32], MODES["bicubic"], antialias=True).clamp(
        0, 1
    )
    torch.testing.assert_close(plain_view(wide, W2_PAPER), norm(square), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong,message",
    [
        (dict(p_flip=1.5), r"probabilities in \[0, 1\]"),
        (dict(scale=(0.0, 1.0)), "a crop's scale"),
        (dict(scale=(0.9, 0.5)), "a crop's scale"),
        (dict(ratio=(2.0, 1.0)), "a crop's ratio"),
        (dict(interpolation="nearest"), "interpolation bicubic or bilinear; received nearest"),
        (dict(blur_kernel=4), "an odd blur kernel; received 4"),
        (dict(hue=0.7), "a hue shift"),
    ],
)
def test_impossible_augmentations_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**wrong)


@pytest.mark.parametrize("x", [X, IMAGES[0], IMAGES[:, :1]], ids=["float", "one image", "one channel"])
def test_views_take_uint8_batches(x):
    with pytest.raises(InputError, match=r"images as a uint8 tensor \(n, 3, H, W\)"):
        TwoViews()(x, generator(0))
