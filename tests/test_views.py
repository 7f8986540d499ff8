"""The batched views against torchvision's and PIL's transforms: given parameters exactly, drawn parameters in distribution."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from wssl.core.checks import InputError
from wssl.core.seeds import generator
from wssl.data import CROP_FLIP, VIEWS, MultiCrop, local_size, views_named
from wssl.data import views as module
from wssl.data.crops import excb_views
from wssl.data.images import synthetic
from wssl.data.views import (
    DIGITS,
    DRAWS,
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


@pytest.mark.parametrize(
    "height,width,scale",
    [
        (32, 32, (0.08, 1.0)),
        (32, 32, (0.2, 1.0)),
        (32, 32, (0.14, 1.0)),
        (32, 32, (0.05, 0.14)),
        (20, 60, (0.5, 1.0)),
        (48, 32, (0.9, 1.0)),
    ],
)
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


# ---- the sets, against pipelines over single images with the numbers retyped from the public codes

SIZED = {name: views_named(name, 32) for name in VIEWS}
OPERATIONS = ("flip", "jitter", "gray", "blur", "solarize")
STRONG, SOFT, MILD = (0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1)  # colour jitter
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def view(scale=(0.08, 1.0), colours=None, blur=0.0, solarize=0.0, mode="bicubic", kernel=13, size=32, norm=CIFAR):
    """A published augmentation as a pipeline, and its numbers: flip 0.5, jitter 0.8 and grey 0.2 in all that have colours."""
    shares = dict(flip=0.5, jitter=0.8 * bool(colours), gray=0.2 * bool(colours), blur=blur, solarize=solarize)
    steps = [
        v2.RandomResizedCrop(size, scale, interpolation=MODES[mode]),
        v2.RandomApply([v2.ColorJitter(*(colours or (0, 0, 0, 0)))], shares["jitter"]),
        v2.RandomGrayscale(shares["gray"]),
        v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur),
        v2.RandomSolarize(128, solarize),
        v2.RandomHorizontalFlip(0.5),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*norm)]),
    ]
    numbers = dict(scale=scale, shares=shares, colours=colours, size=size, norm=norm, mode=mode)
    return SimpleNamespace(pipeline=v2.Compose(steps), **numbers)


PUBLISHED = {
    "w2": [view(colours=MILD, blur=0.5, solarize=0.2)],
    "solo": [view(colours=STRONG, blur=0.5)],
    "solo-weak": [view(colours=SOFT, blur=0.5)],
    "solo-asymmetric": [view(colours=MILD), view(colours=MILD, solarize=0.2)],
    "resa": [view((0.2, 1.0), mode="bilinear"), view((0.2, 1.0), MILD, solarize=0.2)],
    "resa-imagenet": [
        view((0.2, 1.0), mode="bilinear", norm=IMAGENET),
        view((0.2, 1.0), MILD, blur=0.5, solarize=0.2, norm=IMAGENET),
    ],
    "excb": [
        view((0.2, 1.0), MILD, kernel=9),
        view((0.2, 1.0), MILD, blur=0.9, solarize=0.2, kernel=9),
        view((0.05, 0.2), MILD, kernel=9, size=16),
    ],
    "swav": [  # its blur is cut at 23 pixels, which a standard deviation of 2 does not reach
        view((0.14, 1.0), STRONG, blur=0.5, mode="bilinear", kernel=23),
        view((0.14, 1.0), STRONG, blur=0.5, mode="bilinear", kernel=23),
        view((0.05, 0.14), STRONG, blur=0.5, mode="bilinear", kernel=23, size=16),
    ],
}
ROLES = [(name, k) for name, pipelines in PUBLISHED.items() for k in range(len(pipelines))]


def augmentations(views):
    """Of the first view, the second and the local crops."""
    local = [views.local] if isinstance(views, MultiCrop) else []
    return [views.augmentation, views.augmentation2 or views.augmentation, *local]


EVERY = {f"{name} {k}": a for name, views in SIZED.items() for k, a in enumerate(augmentations(views))}
EVERY = {name: a for name, a in EVERY.items() if a not in [EVERY[k] for k in list(EVERY)[: list(EVERY).index(name)]]}
EVERY["crop-flip"] = CROP_FLIP


@pytest.fixture(scope="module")
def samples():
    """400 views of one image by each published pipeline and by each set of ours, as statistics."""
    torch.manual_seed(0)
    image, published, ours = pil(IMAGES[3]), {}, {}
    for name, pipelines in PUBLISHED.items():
        made = SIZED[name](IMAGES[3:4].expand(400, -1, -1, -1), generator(0, "sets"))
        for k, one in enumerate(pipelines):
            published[name, k] = statistics(torch.stack([one.pipeline(image) for _ in range(400)]))
            ours[name, k] = statistics(made[k])
    return published, ours


def least_p(a, b):
    return min(ks(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name,k", ROLES)
def test_every_set_has_the_distribution_of_its_published_pipeline(samples, name, k):
    """11 Kolmogorov-Smirnov tests each, 176 in all; the seeds are fixed, the smallest p above 1e-4."""
    published, ours = samples
    assert least_p(ours[name, k], published[name, k]) > 1e-4


@pytest.mark.parametrize(
    "one,other",
    [
        (("solo", 0), ("solo-weak", 0)),
        (("solo", 0), ("w2", 0)),
        (("solo-weak", 0), ("solo-asymmetric", 0)),
        (("resa", 1), ("resa", 0)),
        (("resa-imagenet", 1), ("resa", 1)),
        (("excb", 1), ("excb", 0)),
        (("excb", 2), ("swav", 2)),
        (("swav", 1), ("swav", 2)),
    ],
)
def test_that_comparison_tells_the_sets_apart(samples, one, other):
    published, ours = samples
    assert least_p(ours[one], published[other]) < 1e-4


def share_changed(a, operation, n=2000):
    """Share of `n` views of one image that differ from the image when no other operation is left."""
    off = {f"p_{name}": 0.0 for name in OPERATIONS} | dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), size=16)
    only = replace(a, **off | {f"p_{operation}": getattr(a, f"p_{operation}")}, sigma=(1.0, 2.0))
    x = IMAGES[3:4, :, ::2, ::2]
    made = augment(x.expand(n, -1, -1, -1), draw(n, generator(0, "share", operation)), only)
    return ((made - plain_view(x, only)).abs().flatten(1).amax(1) > 1e-3).double().mean().item()


@pytest.mark.parametrize("name,k", ROLES)
def test_every_operation_comes_as_often_as_published(name, k):
    for operation, p in PUBLISHED[name][k].shares.items():
        share = share_changed(augmentations(SIZED[name])[k], operation)
        assert abs(share - p) <= 4 * (p * (1 - p) / 2000) ** 0.5, (operation, share, p)


@pytest.mark.parametrize("name,k", [(name, k) for name, k in ROLES if PUBLISHED[name][k].colours])
def test_colour_factors_are_drawn_as_published(name, k):
    """Uniform in 1 +- the strength, the hue's shift in +- it; half the strength, or twice, would be seen."""
    a, strengths = augmentations(SIZED[name])[k], PUBLISHED[name][k].colours
    factors = module.jitter_factors(draw(2000, generator(0, "factors"))[:, 24:28], torch.ones(2000, 1).bool(), a)
    for drawn, centre, strength in zip(factors.T, (1, 1, 1, 0), strengths, strict=True):
        for share in (0.5, 1, 2):
            p = kstest(drawn, "uniform", (centre - share * strength, 2 * share * strength)).pvalue
            assert (p > 1e-3) == (share == 1)


@pytest.mark.parametrize("name,k", ROLES)
def test_size_interpolation_and_blur_are_as_published(name, k):
    a, published = augmentations(SIZED[name])[k], PUBLISHED[name][k]
    assert (a.size, a.interpolation, (a.mean, a.std)) == (published.size, published.mode, published.norm)
    assert a.sigma == (0.1, 2.0) and a.ratio == (3 / 4, 4 / 3)


def area_law(area, low, high):
    """Share of crops below `area` of a large square: uniform, times the chance that the drawn ratio fits, min(1, -ln a / ln(4/3))."""

    def below(a):
        bent = np.maximum(a, 0.75)
        return np.minimum(a, 0.75) + (bent - bent * np.log(bent) - (0.75 - 0.75 * np.log(0.75))) / np.log(4 / 3)

    return (below(area) - below(low)) / (below(high) - below(low))


@pytest.mark.parametrize("name,k", ROLES)
def test_crop_areas_follow_the_law_of_the_published_scale(name, k):
    a, (low, high) = augmentations(SIZED[name])[k], PUBLISHED[name][k].scale
    u = draw(4000, generator(0, "areas"))
    boxes = crop_boxes(u[:, :10], u[:, 10:20], u[:, 20:22], 4000, 4000, a)
    areas = (boxes[:, 2] * boxes[:, 3] / 4000**2).numpy()
    assert kstest(areas, lambda area: area_law(area, low, high)).pvalue > 1e-3
    for wrong in ((low + 0.06, high), (low, 0.8 * high)):
        assert kstest(areas, lambda area, wrong=wrong: area_law(area.clip(*wrong), *wrong)).pvalue < 1e-3


def forced(x, u, a):
    """What torchvision's functions make of one image when they are told what its row `u` says."""
    said = dict(zip(DRAWS, u.split(list(DRAWS.values())), strict=True))
    box = crop_boxes(said["area"][None], said["ratio"][None], said["place"][None], *x.shape[1:], a)[0].int().tolist()
    x = TF.resized_crop(x.float() / 255, *box, [a.size] * 2, MODES[a.interpolation], antialias=True).clamp(0, 1)
    x = TF.horizontal_flip(x) if said["flip"] < a.p_flip else x
    if said["jitter"] < a.p_jitter:
        spread = torch.tensor([a.brightness, a.contrast, a.saturation, a.hue])
        centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
        values = (centre + spread * (2 * said["factors"] - 1)).tolist()
        for k in said["order"].argsort().tolist():
            adjust = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue][k]
            x = adjust(x, values[k])
    x = TF.rgb_to_grayscale(x, 3) if said["gray"] < a.p_gray else x
    if said["blur"] < a.p_blur:
        sigma = (a.sigma[0] + (a.sigma[1] - a.sigma[0]) * said["sigma"]).item()
        x = TF.gaussian_blur(x, [a.blur_kernel] * 2, [sigma] * 2)
    x = TF.solarize(x, 127.5 / 255) if said["solarize"] < a.p_solarize else x
    return TF.normalize(x, a.mean, a.std)


@pytest.mark.parametrize("name", EVERY)
def test_forced_draws_give_torchvisions_pixels(name):
    """Up to the pixels that lie on a threshold of solarize or hue within rounding: less than one in a thousand."""
    u = draw(60, generator(0, "forced"))
    x = IMAGES.repeat(3, 1, 1, 1)
    apart = (
        augment(x, u, EVERY[name]) - torch.stack([forced(*row, EVERY[name]) for row in zip(x, u, strict=True)])
    ).abs()
    assert (apart > 1e-3).double().mean() < 1e-3


def test_crop_and_flip_leaves_the_colours():
    """A grey image of one value stays what it is; only where the crop lies and on which side is random."""
    flat = torch.full((50, 3, 32, 32), 100, dtype=torch.uint8)
    for a in (CROP_FLIP, SIZED["resa"].augmentation):
        made = augment(flat, draw(50, generator(0, "flat")), a)
        torch.testing.assert_close(made, plain_view(flat, a), rtol=0, atol=1e-5)
    assert CROP_FLIP.scale == (0.08, 1.0) and CROP_FLIP.interpolation == "bilinear" and CROP_FLIP.p_flip == 0.5


def test_the_strong_set_of_resa_gives_both_views_what_its_second_one_has():
    assert augmentations(VIEWS["resa-strong"]) == [VIEWS["resa"].augmentation2] * 2
    made = VIEWS["resa-strong"](IMAGES[3:4].expand(40, -1, -1, -1), generator(0, "strong"))
    assert not torch.equal(*made)


def test_excb_moves_its_border():
    views = excb_views(0.14)
    assert views.augmentation.scale == (0.14, 1.0) and views.local.scale == (0.05, 0.14)
    assert views.augmentation2.scale == (0.14, 1.0)
    assert VIEWS["excb"] == excb_views(0.2)


# ---- several crops, and sets by name


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [16, 32, 40])
def test_a_set_by_name_has_the_size_asked_for(name, size):
    views = views_named(name, size)
    batches = views(IMAGES, generator(0, "sizes"))
    count = {"excb": 6, "excb-imagenet": 6, "swav": 6, "small-multi": 4}.get(name, 0)
    local = [(20, 3, local_size(size), local_size(size))] * count
    assert [tuple(batch.shape) for batch in batches] == [(20, 3, size, size)] * 2 + local
    assert views.augmentation.size == size and all(torch.isfinite(batch).all() for batch in batches)
    assert views_named(name) is VIEWS[name] and views_named(name, VIEWS[name].augmentation.size) == VIEWS[name]


def test_published_sizes_of_local_crops():
    assert [local_size(size) for size in (224, 32)] == [96, 16]
    assert all(local_size(s) % 4 == 0 and 0 <= local_size(s) - 96 / 224 * s < 4 for s in range(1, 300))


@pytest.mark.parametrize("name", ["excb", "swav"])
def test_every_crop_of_every_image_is_its_own(name):
    copies = IMAGES[3:4].expand(30, -1, -1, -1)
    batches = VIEWS[name](copies, generator(0, "crops", 1))
    again = VIEWS[name](copies, generator(0, "crops", 1))
    assert all(torch.equal(*pair) for pair in zip(batches, again, strict=True))
    for same_size in (batches[:2], batches[2:]):
        rows = torch.cat(same_size).flatten(1)
        assert len(rows.unique(dim=0)) == len(rows)
    other = VIEWS[name](copies, generator(0, "crops", 2))
    assert not any(torch.equal(*pair) for pair in zip(batches, other, strict=True))
    two = TwoViews(VIEWS[name].augmentation, VIEWS[name].augmentation2)(copies, generator(0, "crops", 1))
    assert torch.equal(two[0], batches[0]) and torch.equal(two[1], batches[1])


def test_local_crops_show_their_own_image():
    """Images of one grey value each: crop k of image i has the value of image i."""
    flat = (torch.arange(20) * 12).byte().view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    plain = replace(CROP_FLIP, mean=(0.0,) * 3, std=(1.0,) * 3)
    views = MultiCrop(plain, local=replace(plain, size=16, scale=(0.05, 0.2)), n_local=3)
    for batch in views(flat, generator(0, "own")):
        torch.testing.assert_close(batch.mean((1, 2, 3)) * 255, torch.arange(20) * 12.0, rtol=0, atol=1e-2)


def test_an_autocast_region_does_not_coarsen_local_crops():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = VIEWS["swav"](IMAGES, generator(0, "autocast"))
    outside = VIEWS["swav"](IMAGES, generator(0, "autocast"))
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_refused_sets():
    with pytest.raises(InputError, match="views among w2, small, digits, solo, .*; received simclr"):
        views_named("simclr")
    with pytest.raises(InputError, match="local crops of at least 1; received 0"):
        replace(VIEWS["swav"], n_local=0)
    for size in (0, 1.5):
        with pytest.raises(InputError, match="a size in whole pixels"):
            views_named("w2", size)
    with pytest.raises(InputError, match="a view larger than half of its blur kernel"):
        views_named("swav", 8)


# ---- every image its own draw


@pytest.mark.parametrize("name", EVERY)
def test_a_view_depends_on_its_own_row_only(name):
    u, shuffle = draw(20, generator(0, "rows")), torch.randperm(20, generator=generator(0, "shuffle"))
    together = augment(IMAGES, u, EVERY[name])
    torch.testing.assert_close(augment(IMAGES[shuffle], u[shuffle], EVERY[name]), together[shuffle], rtol=0, atol=2e-5)
    torch.testing.assert_close(augment(IMAGES[3:4], u[3:4], EVERY[name]), together[3:4], rtol=0, atol=2e-5)


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


@pytest.mark.parametrize("name", EVERY)
def test_no_value_is_read_on_the_host(name):
    """On the meta device there are no values to read: a branch on one, or a copy to the host, raises."""
    u, size = torch.empty(7, sum(DRAWS.values()), device="meta"), EVERY[name].size
    made = augment(torch.empty(7, 3, 32, 32, dtype=torch.uint8, device="meta"), u, EVERY[name])
    assert made.shape == (7, 3, size, size)


@pytest.mark.parametrize("name", ["w2 0", "digits 0", "resa 0", "excb 1", "swav 2"])
def test_the_pipeline_is_one_graph(name):
    torch._dynamo.reset()
    u = draw(20, generator(0, "graph"))
    traced = torch.compile(augment, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(IMAGES, u, EVERY[name]), augment(IMAGES, u, EVERY[name]))


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
        (dict(size=0), "a size in whole pixels of at least 1; received 0"),
        (dict(size=6), "a view larger than half of its blur kernel; received 6 pixels and a kernel of 13"),
    ],
)
def test_impossible_augmentations_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**wrong)


@pytest.mark.parametrize("x", [X, IMAGES[0], IMAGES[:, :1]], ids=["float", "one image", "one channel"])
def test_views_take_uint8_batches(x):
    with pytest.raises(InputError, match=r"images as a uint8 tensor \(n, 3, H, W\)"):
        TwoViews()(x, generator(0))


@pytest.mark.parametrize("name", ["w2", "swav"])
def test_a_part_of_a_batch_has_the_views_of_its_place(name):
    views = views_named(name, 32)
    whole = views(IMAGES, generator(0, "part"))
    parts = [views(IMAGES[first : first + 5], generator(0, "part"), first, 20) for first in range(0, 20, 5)]
    for k, batch in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[k] for part in parts]), batch, atol=1e-5, rtol=0)
