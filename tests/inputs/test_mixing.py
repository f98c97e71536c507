"""augment.mixup_cutmix, on the device."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tl_tf import config
from tl_tf.inputs import augment

with config.registers_nothing():
    from official.vision.ops import augment as garden

B, T, H, W, K = 4, 2, 8, 8, 5  # square, because Model Garden confuses the sides


def batch(*shape, seed=3):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=[*shape, 3]).astype(np.float32)
    classes = rng.integers(0, K, shape[0])
    return tf.constant(pixels), tf.one_hot(classes, K), classes


def garden_mix(method: str, pixels, classes, *, monkeypatch, share, centre=None):
    """Model Garden's mix for given draws; its labels for given shares."""
    mixer = garden.MixupAndCutmix(num_classes=K, label_smoothing=0.0)
    draw = staticmethod(lambda *_: tf.constant(share))
    monkeypatch.setattr(garden.MixupAndCutmix, "_sample_from_beta", draw)
    if centre is not None:
        middles = iter(np.int32(centre.T * [[H], [W]]))
        monkeypatch.setattr(tf.random, "uniform", lambda *_, **__: next(middles))
    mixed, labels, own = getattr(mixer, method)(pixels, tf.constant(classes))
    return [x.numpy() for x in mixer._update_labels(mixed, labels, own)]


@pytest.mark.parametrize("shape", [(B, H, W), (B, T, H, W)])
def test_mixup_is_model_gardens(shape, monkeypatch):
    pixels, labels, classes = batch(*shape)
    share = np.float32([0.1, 0.4, 0.75, 1.0])
    got = augment.mixup(pixels, labels, share=share)
    want = garden_mix("_mixup", pixels, classes, monkeypatch=monkeypatch, share=share)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("shape", [(B, H, W), (B, T, H, W)])
def test_cutmix_is_model_gardens(shape, monkeypatch):
    """Labels as well, where the cut has even sides and lies within the image."""
    pixels, labels, classes = batch(*shape)
    share = np.float32([0.43, 0.9, 0.93, 0.75])
    centre = np.float32([[0.51, 0.49], [0.0, 0.9], [0.99, 0.1], [0.5, 0.6]])
    got = augment.cutmix(pixels, labels, share=share, centre=tf.constant(centre))
    want = garden_mix(
        "_cutmix", pixels, classes, monkeypatch=monkeypatch, share=share, centre=centre
    )
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1][3], want[1][3], atol=1e-6)
    is_mirror = (got[0] == pixels[::-1]).numpy().reshape(B, -1).mean(1)
    own = 1 - is_mirror[:, None]
    want = own * labels + (1 - own) * labels[::-1]
    np.testing.assert_allclose(got[1], want, atol=1e-6)


def test_a_cut_is_as_wide_as_the_image_allows():
    pixels, labels, _ = batch(2, 6, 12)
    share, centre = np.float32([0.75, 0.75]), np.float32([[0.5, 0.5]] * 2)
    mixed, _ = augment.cutmix(pixels, labels, share=share, centre=tf.constant(centre))
    is_cut = (mixed[0] == pixels[1]).numpy().all(-1)
    assert is_cut.sum() == 2 * 6  # half of 6, cut to an even number, by half of 12


def test_xla_mixes_as_eager_does():
    pixels, labels, _ = batch(B, T, 5, 7)
    share, centre = tf.constant([0.3, 0.6, 0.9, 0.1]), tf.random.uniform([B, 2], seed=1)

    def mix(share, centre):
        cut = augment.cutmix(pixels, labels, share=share, centre=centre)
        return *cut, *augment.mixup(pixels, labels, share=share)

    compiled = tf.function(mix, jit_compile=True)(share, centre)
    for one, other in zip(compiled, mix(share, centre), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "alphas", [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)], ids=["mixup", "cutmix", "either"]
)
def test_xla_compiles_it_to_static_shapes(alphas):
    pixels, labels, _ = batch(B, T, 5, 7)

    @tf.function(jit_compile=True)
    def mix(seed):
        mixup_alpha, cutmix_alpha = alphas
        return augment.mixup_cutmix(
            pixels,
            labels,
            seed=seed,
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
        )

    seeds = [tf.constant(seed) for seed in ([3, 4], [3, 4], [3, 5])]
    first, again, other = (mix(seed) for seed in seeds)
    assert first[0].shape == pixels.shape and first[1].shape == labels.shape
    np.testing.assert_allclose(tf.reduce_sum(first[1], axis=1), 1.0, atol=1e-6)
    assert np.array_equal(first[0], again[0]) and not np.array_equal(first[0], other[0])
    ir = mix.experimental_get_compiler_ir(seeds[0])
    assert "<=" not in ir(stage="hlo", platform_name="CPU")


def test_one_of_the_two_is_drawn_for_each_batch():
    pixels, labels, _ = batch(2, 4, 5)
    kinds = []
    for seed in range(60):
        mixed, _ = augment.mixup_cutmix(
            pixels, labels, seed=[7, seed], mixup_alpha=0.8, cutmix_alpha=1.0
        )
        is_whole = (mixed == pixels) | (mixed == pixels[::-1])
        kinds.append(bool(tf.reduce_all(is_whole)))
    assert 18 <= sum(kinds) <= 42


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    uniform = tf.random.stateless_uniform([4000], [5, 6])
    shares = augment._beta_quantile(uniform, alpha).numpy()
    want = stats.beta(alpha, alpha).ppf(uniform.numpy().astype(float))
    np.testing.assert_allclose(shares, want, atol=1e-3)


def test_bfloat16_stays():
    pixels, labels, _ = batch(B, H, W)
    mixed, _ = augment.mixup_cutmix(
        tf.cast(pixels, tf.bfloat16),
        labels,
        seed=[1, 2],
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
    )
    assert mixed.dtype == tf.bfloat16


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (-1.0, 1.0)])
def test_alphas_are_checked(alphas):
    pixels, labels, _ = batch(B, H, W)
    with pytest.raises(ValueError, match="mixup_alpha and cutmix_alpha must be >= 0"):
        augment.mixup_cutmix(
            pixels,
            labels,
            seed=[1, 2],
            mixup_alpha=alphas[0],
            cutmix_alpha=alphas[1],
        )
