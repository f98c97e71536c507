"""How a video becomes views: which JPEG frames are picked, what is decoded of them."""

import dataclasses

import tensorflow as tf

from tl_tf.inputs import augment, clips

Tensors = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Views:
    """How a video becomes views: `pick_*` chooses JPEG frames, `decode_*` makes pixels.

    The fields are those arguments of clip_dataset; fps and num_classes are the data
    set's.
    """

    is_training: bool
    num_frames: int
    crop_px: int
    short_side_px: int
    fps: float
    num_classes: int
    frame_stride: int = 1
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    num_clips: int = 1
    num_crops: int = 1
    labels_from: str = "video"

    def __post_init__(self):
        names = ("num_frames", "frame_stride", "crop_px", "short_side_px", "num_clips")
        check_at_least_1(**{name: getattr(self, name) for name in names})
        if self.num_crops not in (1, 3):
            raise ValueError(
                f"clip_dataset: num_crops must be 1 or 3, got {self.num_crops}."
            )
        if self.labels_from not in ("video", "clip"):
            raise ValueError(
                "clip_dataset: labels_from must be 'video' or 'clip', got"
                f" {self.labels_from!r}."
            )
        only_eval = {"num_clips": 1, "num_crops": 1}
        only_train = {"scale_range": (1.0, 1.0), "flip": False, "labels_from": "video"}
        for name, default in (only_eval if self.is_training else only_train).items():
            if getattr(self, name) != default:
                phase, other = (
                    ("eval", "train") if name in only_train else ("train", "eval")
                )
                raise ValueError(
                    f"{phase}/clip_dataset: {name} must be {default!r}, got"
                    f" {getattr(self, name)!r}. It is for {other}/clip_dataset only."
                )
        low, high = self.scale_range
        if not 0 < low <= high or self.crop_px > low * self.short_side_px:
            raise ValueError(
                f"clip_dataset: a crop of {self.crop_px} px does not fit into a short"
                f" side of {self.short_side_px} px scaled by {self.scale_range}. Set"
                " crop_px <= short_side_px * lowest scale, lowest <= highest."
            )

    @property
    def span(self) -> int:
        """Source frames from a clip's first to its last."""
        return clips.clip_span(self.num_frames, self.frame_stride)

    def pick_train(self, video: Tensors, *, epoch_seed, shard, record) -> Tensors:
        """-> frames string [T], labels [K], seed."""
        seed = tf.random.fold_in(tf.random.fold_in(epoch_seed, shard), record)
        offset_seed, pixel_seed = tf.unstack(tf.random.split(seed))
        offset = clips.train_offset(
            tf.size(video["frames"]),
            num_frames=self.num_frames,
            frame_stride=self.frame_stride,
            seed=offset_seed,
        )
        labels = video["labels"]
        if self.labels_from == "clip":
            labels = clips.labels_in_clip(
                video["segment_labels"],
                video["segment_starts"],
                video["segment_ends"],
                start_seconds=tf.cast(offset, tf.float32) / self.fps,
                end_seconds=tf.cast(offset + self.span, tf.float32) / self.fps,
            )
        return {
            "frames": self._frames_from(video, offset),  # [T]
            "labels": self._multi_hot(labels),  # [K]
            "seed": pixel_seed,
        }

    def pick_eval(self, video: Tensors, *, shard, record, first_indices) -> Tensors:
        """-> frames string [clips, T], labels [K], mask, index, starts [V]."""
        starts = self._starts(video["frames"])
        return {
            "frames": self._frames_from(video, starts[:, tf.newaxis]),  # [clips, T]
            "labels": self._multi_hot(video["labels"]),  # [K]
            "mask": tf.ones([]),
            "index": first_indices[shard] + record,
            "starts": tf.repeat(starts, self.num_crops),  # [V]
        }

    def decode_train(self, clip: Tensors) -> Tensors:
        """-> pixels uint8 [T, H, W, 3], labels [K]."""
        crop_seed, flip_seed = tf.unstack(tf.random.split(clip["seed"]))
        windows = augment.random_windows(
            *tf.unstack(_frame_size(clip["frames"][0])),
            crop_px=self.crop_px,
            short_side_px=self.short_side_px,
            scale_range=self.scale_range,
            seed=crop_seed,
        )
        frames = augment.decode_windows(clip["frames"], windows, crop_px=self.crop_px)
        frames = frames[0]  # [T, H, W, 3]
        if self.flip:
            frames = augment.random_flip(frames, seed=flip_seed)
        return {"pixels": frames, "labels": clip["labels"]}

    def clips_of(self, video: Tensors) -> tf.data.Dataset:
        """A clip at a time of what pick_eval gives: frames string [T], and the rest."""
        rest = {name: value for name, value in video.items() if name != "frames"}
        frames = tf.data.Dataset.from_tensor_slices(video["frames"])
        return frames.map(lambda clip: {**rest, "frames": clip})

    def decode_eval(self, clip: Tensors) -> Tensors:
        """-> pixels uint8 [crops, T, H, W, 3], the rest as it was."""
        rest = {name: value for name, value in clip.items() if name != "frames"}
        return {**rest, "pixels": self._cut(clip["frames"])}

    def join_clips(self, clips: Tensors) -> Tensors:
        """Those of B videos in turn -> pixels [B, V, T, H, W, 3], the rest [B, ...]."""
        joined = {name: value[:: self.num_clips] for name, value in clips.items()}
        pixels = clips["pixels"]  # [B clips, crops, T, H, W, 3]
        num_views = self.num_clips * self.num_crops
        shape = [pixels.shape[0] // self.num_clips, num_views, *pixels.shape[2:]]
        return {**joined, "pixels": tf.reshape(pixels, shape)}

    def views_of(self, frames: tf.Tensor) -> tf.Tensor:
        """The views that evaluation takes of a video, of whatever length.

        Args:
          frames: of the whole video, at the data set's rate: JPEG files, string [F], or
            pixels, uint8 [F, h, w, 3].

        Returns:
          uint8 [V, T, H, W, 3].
        """
        starts = self._starts(frames)[:, tf.newaxis]
        size = [self.num_frames, self.crop_px, self.crop_px, 3]
        found = tf.map_fn(
            self._cut,
            self._frames_from({"frames": frames}, starts),  # [clips, T, …]
            fn_output_signature=tf.TensorSpec([self.num_crops, *size], tf.uint8),
        )  # [clips, crops, T, H, W, 3]
        return tf.reshape(found, [self.num_clips * self.num_crops, *size])

    def _starts(self, frames: tf.Tensor) -> tf.Tensor:
        """Of evaluation's clips: int32 [clips]."""
        return clips.eval_offsets(
            tf.shape(frames)[0],
            num_frames=self.num_frames,
            frame_stride=self.frame_stride,
            num_clips=self.num_clips,
        )

    def _cut(self, frames: tf.Tensor) -> tf.Tensor:
        """string [T], or uint8 [T, h, w, 3] -> uint8 [crops, T, H, W, 3]."""
        is_encoded = frames.dtype == tf.string
        size = _frame_size(frames[0]) if is_encoded else tf.shape(frames)[1:3]
        windows = augment.fixed_windows(
            *tf.unstack(size),
            crop_px=self.crop_px,
            short_side_px=self.short_side_px,
            num_crops=self.num_crops,
        )
        cut = augment.decode_windows if is_encoded else augment.cut_windows
        return cut(frames, windows, crop_px=self.crop_px)

    def _frames_from(self, video: Tensors, offset: tf.Tensor) -> tf.Tensor:
        indices = clips.clip_indices(
            tf.shape(video["frames"])[0],
            num_frames=self.num_frames,
            frame_stride=self.frame_stride,
            offset=offset,
        )
        return tf.gather(video["frames"], indices)

    def _multi_hot(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_max(
            tf.zeros([self.num_classes]),
            labels[:, tf.newaxis],
            tf.ones_like(labels, tf.float32),
        )


def check_at_least_1(**values: int) -> None:
    """Raises a ValueError that names the first argument below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"clip_dataset: {name} must be >= 1, got {value}.")


def _frame_size(jpeg: tf.Tensor) -> tf.Tensor:
    """Height and width of a JPEG file, string [] -> int32 [2]."""
    return tf.ensure_shape(tf.image.extract_jpeg_shape(jpeg), [3])[:2]
