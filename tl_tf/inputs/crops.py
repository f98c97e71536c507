"""How an image becomes image_px by image_px pixels, for training and evaluation."""

import dataclasses

import tensorflow as tf

from tl_tf.inputs import image_augment, randaugment

TRAIN_CROPS = ("inception", "pad", "random", "resize")
EVAL_CROPS = ("center", "resize")
PAD_MODES = ("reflect", "zero")
Size = int | tuple[int, int]
ANY_FILE = image_augment.Stored(frozenset(["jpeg", "png"]), is_turned=True)


@dataclasses.dataclass(frozen=True)
class Crops:
    """What image_dataset's arguments of the same names ask for, checked.

    Raises:
      ValueError: for an argument out of range, or one that `crop` makes no use of.
    """

    is_training: bool
    crop: str
    image_px: Size
    resize_px: Size | None = None
    pad_px: int | None = None
    pad_mode: str = "reflect"
    area_range: tuple[float, float] = (0.05, 1.0)
    flip: bool = False
    antialias: bool = False
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    erasing_share: float = 0.0

    def __post_init__(self):
        crops = TRAIN_CROPS if self.is_training else EVAL_CROPS
        phase = "training" if self.is_training else "evaluation"
        _require(self.crop in crops, f"crop in {phase}", "one of", crops, self.crop)
        _require(min(self.size) >= 1, "image_px", "at least", 1, self.image_px)
        wants_resize = self.crop in ("center", "random")
        for name, is_wanted in (
            ("resize_px", wants_resize),
            ("pad_px", self.crop == "pad"),
        ):
            got = getattr(self, name)
            wanted = "set" if is_wanted else "None"
            _require(
                (got is not None) == is_wanted,
                f"{name} with crop={self.crop!r}",
                "",
                wanted,
                got,
            )
        if wants_resize:
            height, width = _pair(self.resize_px)
            is_large = height >= self.size[0] and width >= self.size[1]
            _require(is_large, "resize_px", "at least", self.image_px, self.resize_px)
            is_side = self.crop == "random" or isinstance(self.resize_px, int)
            _require(is_side, "resize_px of a center crop", "", "int", self.resize_px)
        _require(
            self.pad_px is None or self.pad_px >= 1, "pad_px", ">=", 1, self.pad_px
        )
        _require(
            self.pad_px is None
            or self.pad_mode == "zero"
            or self.pad_px < min(self.size),
            "pad_px of a reflecting pad",
            "below",
            min(self.size),
            self.pad_px,
        )
        _require(
            self.pad_mode in PAD_MODES, "pad_mode", "one of", PAD_MODES, self.pad_mode
        )
        low, high = self.area_range
        _require(0 < low <= high <= 1, "area_range", "in", "0..1", self.area_range)
        share = self.erasing_share
        _require(0 <= share <= 1, "erasing_share", "in", "0..1", share)
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        _require(layers >= 0, "randaugment_layers", ">=", 0, layers)
        _require(
            0 <= magnitude <= 10, "randaugment_magnitude", "in", "0..10", magnitude
        )
        _require(
            self.is_training or not (self.flip or layers or share),
            "flip, randaugment_layers and erasing_share of an evaluation",
            "",
            "False, 0 and 0",
            (self.flip, layers, share),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return _pair(self.image_px)

    def train(
        self,
        data: tf.Tensor,
        orientation: tf.Tensor,
        *,
        stored: image_augment.Stored,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """A file, string [], as uint8 [H, W, 3], by the draws of `seed` alone."""
        seeds = tf.unstack(tf.random.split(seed, 4))
        pixels = self._crop_train(data, orientation, stored=stored, seed=seeds[0])
        pixels = tf.ensure_shape(pixels, [*self.size, 3])
        if self.flip:
            pixels = image_augment.random_flip(pixels, seed=seeds[1])
        if self.randaugment_layers:
            pixels = randaugment.randaugment(
                pixels,
                layers=self.randaugment_layers,
                magnitude=self.randaugment_magnitude,
                seed=seeds[2],
            )
        if self.erasing_share:
            pixels = image_augment.random_erasing(
                pixels, share=self.erasing_share, seed=seeds[3]
            )
        return pixels

    def evaluate(
        self, data: tf.Tensor, orientation: tf.Tensor, *, stored: image_augment.Stored
    ) -> tf.Tensor:
        """A file, string [], as uint8 [1, H, W, 3]; nothing is drawn."""
        return self._crop_eval(image_augment.decode(data, orientation, stored=stored))

    def views_of(self, image: tf.Tensor, orientation: tf.Tensor | int = 1) -> tf.Tensor:
        """The one view that evaluation takes of an image.

        Args:
          image: a JPEG or PNG file, string [], or upright pixels, uint8 [h, w, 3].
          orientation: of a file, 1..8 as in EXIF.

        Returns:
          uint8 [1, H, W, 3].
        """
        if image.dtype != tf.string:
            return self._crop_eval(image)
        return self.evaluate(image, tf.convert_to_tensor(orientation), stored=ANY_FILE)

    def _crop_eval(self, pixels: tf.Tensor) -> tf.Tensor:
        if self.crop == "center":
            pixels = image_augment.resize_short_side(
                pixels, self.resize_px, antialias=self.antialias
            )
            pixels = image_augment.central_crop(pixels, self.size)
        else:
            pixels = self._resize(pixels)
        return tf.ensure_shape(pixels, [*self.size, 3])[tf.newaxis]  # [1, H, W, 3]

    def _crop_train(
        self,
        data: tf.Tensor,
        orientation: tf.Tensor,
        *,
        stored: image_augment.Stored,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        if self.crop == "inception":
            size = image_augment.upright_size(data, orientation, stored)
            window = image_augment.inception_window(
                size, area_range=self.area_range, seed=seed
            )
            return self._resize(
                image_augment.decode(data, orientation, stored=stored, window=window)
            )
        pixels = image_augment.decode(data, orientation, stored=stored)
        if self.crop == "random":
            pixels = image_augment.resize(
                pixels, _pair(self.resize_px), antialias=self.antialias
            )
            return image_augment.random_crop(pixels, self.size, seed=seed)
        pixels = self._resize(pixels)
        if self.crop != "pad":
            return pixels
        pixels = image_augment.pad(pixels, self.pad_px, mode=self.pad_mode)
        return image_augment.random_crop(pixels, self.size, seed=seed)

    def _resize(self, pixels: tf.Tensor) -> tf.Tensor:
        return image_augment.resize(pixels, self.size, antialias=self.antialias)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _require(holds: bool, name: str, relation: str, wanted: object, got: object):
    if not holds:
        wanted = f"{relation} {wanted}".strip()
        raise ValueError(f"image_dataset: {name} must be {wanted}, got {got}.")
