"""RandAugment: Model Garden's image operations, by draws that can be repeated.

Model Garden draws from TensorFlow's global generator, so that a resumed run would see
other images than an unbroken one; the operations themselves are taken as they are.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from tl_tf import config

OPERATIONS = (  # those of Model Garden's RandAugment, in its order; one more is to do
    ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color")
    + ("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX")
    + ("TranslateY", "Cutout", "SolarizeAdd")
)
MAX_MAGNITUDE = 10.0
ROTATE_DEGREES, SHEAR = 30.0, 0.3  # at most, either way
TRANSLATE, CUTOUT = 100 / 224, 40 / 224  # at most, as shares of the image's side
GREY = [128] * 3  # fills what is empty


def randaugment(
    pixels: tf.Tensor, *, layers: int, magnitude: float, seed: tf.Tensor
) -> tf.Tensor:
    """Applies `layers` operations, each drawn from 16 and none at all.

    Source: RandAugment (Cubuk et al. 2019), as official.vision.ops.augment.RandAugment.
    Differs: translations and cuts are shares of the image; there they are pixels, right
      for 224, which would empty an image of 32.
    Args:
      pixels: uint8 [H, W, 3], of static shape.
      layers: N of the paper, at least 1.
      magnitude: M of the paper, 0..10, for all operations.
      seed: int32 [2].

    Returns:
      uint8 [H, W, 3].
    """
    shape = pixels.shape
    for layer_seed in tf.unstack(tf.random.split(seed, layers)):
        draws = tf.random.stateless_uniform([4], layer_seed)  # operation, sign, y, x
        choice = tf.cast(draws[0] * (len(OPERATIONS) + 1), tf.int32)
        branches = [
            _branch(name, pixels, magnitude=magnitude, draws=draws)
            for name in OPERATIONS
        ]
        pixels = tf.switch_case(choice, [*branches, lambda p=pixels: tf.identity(p)])
        pixels = tf.ensure_shape(pixels, shape)
    return pixels


def apply(
    name: str, pixels: tf.Tensor, *, magnitude: float, draws: tf.Tensor
) -> tf.Tensor:
    """One of OPERATIONS.

    Args:
      name: of the operation.
      pixels: uint8 [H, W, 3], of static shape.
      magnitude: 0..10.
      draws: float32 [4] in 0..1; the second gives a sign, the others a place, where the
        operation has them.
    """
    augment = _model_garden()
    function = augment.NAME_TO_FUNC[name]
    height, width = pixels.shape[:2]
    share = magnitude / MAX_MAGNITUDE
    sign = tf.where(draws[1] < 0.5, -1.0, 1.0)
    signed = {
        "Rotate": ROTATE_DEGREES,
        "ShearX": SHEAR,
        "ShearY": SHEAR,
        "TranslateX": TRANSLATE * width,
        "TranslateY": TRANSLATE * height,
    }
    if name in signed:
        return function(pixels, sign * share * signed[name], GREY)
    if name == "Cutout":
        y, x = tf.unstack(tf.cast(draws[2:] * [height, width], tf.int32))
        half = int(share * CUTOUT * min(height, width))
        return augment._fill_rectangle(pixels, x, y, half, half, GREY)
    level_to_args = augment.level_to_arg(cutout_const=0.0, translate_const=0.0)
    return function(pixels, *level_to_args[name](magnitude))


def _branch(name: str, pixels: tf.Tensor, **kwargs) -> Callable[[], tf.Tensor]:
    return lambda: apply(name, pixels, **kwargs)


@functools.cache
def _model_garden():
    """Half a second, for those who use it."""
    with config.registers_nothing():
        from official.vision.ops import augment
    return augment
