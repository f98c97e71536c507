"""Image files -> batches of uint8 images: shuffle, read, decode and crop, batch.

Images come from a folder of class folders, or from a data set that TFDS has prepared.
Every draw is made from (seed, epoch, index of the image): the stream does not depend on
the number of threads, and its iterator can be saved and restored.
"""

from pathlib import Path

import gin
import tensorflow as tf

from tl_tf.inputs import crops, folders, tfds_shards
from tl_tf.inputs import split as splits

Source = folders.Folder | tfds_shards.Shards  # the same methods
PREFETCH_BATCHES = 2  # decoded, hence large


@gin.configurable
def image_dataset(
    data_dir: str | Path,
    *,
    dataset: str,
    split: str,
    is_training: bool,
    batch_size: int,
    image_px: int | tuple[int, int],
    crop: str,
    seed: int,
    resize_px: int | tuple[int, int] | None = None,
    pad_px: int | None = None,
    pad_mode: str = "reflect",
    area_range: tuple[float, float] = (0.05, 1.0),
    flip: bool = False,
    randaugment_layers: int = 0,
    randaugment_magnitude: float = 10.0,
    erasing_share: float = 0.0,
    antialias: bool = False,
    labels_from: str = "label",
    real_json: str | Path | None = None,
    max_broken_share: float = 0.0,
    shuffle_buffer_mb: float = 64,
    num_hosts: int = 1,
    host: int = 0,
) -> splits.Split:
    """Opens a split of an image data set.

    Args:
      data_dir: folder that holds the data set's folder.
      dataset: name of a folder of <split>/<class>/*.jpg, .jpeg or .png, whose names and
        EXIF orientations are read here; or "tfds:<name>", prepared below `data_dir`,
        whose EXIF orientations are ignored.
      split: "train", "test" or what else there is, or a part as "train[:90%]".
      is_training: every image once an epoch in a new order, for ever; otherwise every
        image once, in order, with nothing drawn.
      batch_size: B, images in a batch on this host.
      image_px: H and W, or one number for both.
      crop: in training "inception", a random window resized; "pad", the image resized,
        padded by `pad_px` and cropped; "random", the image resized to `resize_px` and
        cropped; "resize", the whole image.  In evaluation "resize", or "center", the
        short side resized to `resize_px` and the centre cropped.
      seed: of the run; evaluation makes no use of it.
      resize_px: of the crops "random" and "center"; two numbers or, for "center", one.
      pad_px: of the crop "pad", on each side.
      pad_mode: "reflect" or "zero".
      area_range: of the crop "inception"; lowest and highest share of the image.
      flip: training only; mirrors half of the images, which swaps left and right.
      randaugment_layers: training only; operations of RandAugment on each image.
      randaugment_magnitude: of them all, 0..10.
      erasing_share: training only; of the images, those that lose a rectangle.
      antialias: whether resizing reads every pixel, as later ViT code does; False, as
        the first did, skips some below half the size.
      labels_from: "label" for the class; "real", in evaluation only, for ReaL's labels
        of ImageNet's validation images, several or none.
      real_json: path of ReaL's real.json, from which images numbered as
        ILSVRC2012_val_00000001.JPEG get them; None for "tfds:imagenet2012_real".
      max_broken_share: of the files of a folder that may be no images.
      shuffle_buffer_mb: TFDS only; encoded images in the shuffle buffer, in 10^6 bytes;
        a saved iterator holds them too.  The files of a folder are shuffled by name.
      num_hosts: each of them reads every num_hosts-th file, or shard of TFDS.
      host: which of them this is, from 0.

    Raises:
      ValueError: for an argument out of range, or a data set that is missing or not
        what the arguments say.
    """
    cropper = crops.Crops(
        is_training=is_training,
        crop=crop,
        image_px=image_px,
        resize_px=resize_px,
        pad_px=pad_px,
        pad_mode=pad_mode,
        area_range=tuple(area_range),
        flip=flip,
        antialias=antialias,
        randaugment_layers=randaugment_layers,
        randaugment_magnitude=randaugment_magnitude,
        erasing_share=erasing_share,
    )
    for name, value in {"batch_size": batch_size, "num_hosts": num_hosts}.items():
        if value < 1:
            raise ValueError(f"image_dataset: {name} must be >= 1, got {value}.")
    if not 0 <= host < num_hosts:
        raise ValueError(
            f"image_dataset: host must be in 0..{num_hosts - 1}, got {host}."
        )
    _check_labels(labels_from, dataset, is_training=is_training, real_json=real_json)
    shared = {"real_json": real_json, "num_hosts": num_hosts, "host": host}
    if dataset.startswith(tfds_shards.PREFIX):
        if max_broken_share:
            raise ValueError(
                "image_dataset: max_broken_share is for folders, must be 0 for"
                f" {dataset!r}, got {max_broken_share}."
            )
        source = tfds_shards.Shards.open(
            data_dir,
            dataset,
            split,
            labels_from=labels_from,
            shuffle_buffer_mb=shuffle_buffer_mb,
            **shared,
        )
    else:
        source = folders.Folder.scan(
            data_dir, dataset, split, max_broken_share=max_broken_share, **shared
        )
    num_batches = None
    if is_training:
        stream = _train_stream(source, cropper, seed=seed)
    else:
        num_batches = -(-max(source.images_by_host) // batch_size)
        stream = _eval_stream(source, cropper, num_elements=num_batches * batch_size)
    num_images, num_skipped = sum(source.images_by_host), len(source.skipped)
    return splits.Split(
        batches=stream.batch(batch_size, drop_remainder=True)
        .prefetch(PREFETCH_BATCHES)
        .with_options(splits.options()),
        dataset=dataset,
        split=split,
        classes=source.classes,
        num_examples=num_images,
        coverage={
            "images_expected": num_images + num_skipped,
            "images_read": num_images,
            "images_skipped": num_skipped,
            "share": num_images / (num_images + num_skipped),
        },
        explain=source.explain,
        num_batches=num_batches,
        examples=() if is_training else source.examples,
        rows=() if is_training else source.rows,
        skipped=() if is_training else source.skipped,
        facts=source.facts,
        noun="images",
    )


def _train_stream(
    source: Source, cropper: crops.Crops, *, seed: int
) -> tf.data.Dataset:
    """Cropped images, epoch after epoch, each image of the host once in every epoch."""
    load = source.build_load()

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        seeds = tf.random.split(tf.random.fold_in(tf.constant([seed, 0]), epoch), 2)
        key = tf.cast(seeds[1, 0], tf.int32)
        return source.read(seeds[0]).map(lambda image: {**image, "epoch_key": key})

    def finish(image: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        loaded = load(image)
        pixels = cropper.train(
            loaded["data"],
            loaded["orientation"],
            stored=source.stored,
            seed=tf.stack([image["epoch_key"], image["index"]]),
        )
        labels = _several_hot(loaded["labels"], len(source.classes))
        return {"pixels": pixels, "labels": labels}

    epochs = splits.epochs()
    return epochs.flat_map(one_epoch).map(finish, num_parallel_calls=tf.data.AUTOTUNE)


def _eval_stream(
    source: Source, cropper: crops.Crops, *, num_elements: int
) -> tf.data.Dataset:
    """Every image of the host once, in order, then padding up to `num_elements`."""
    load = source.build_load()

    def finish(image: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        loaded = load(image)
        return {
            "pixels": cropper.evaluate(
                loaded["data"], loaded["orientation"], stored=source.stored
            ),
            "labels": _several_hot(loaded["labels"], len(source.classes)),
            "mask": tf.constant(1.0),
            "index": image["index"],
        }

    images = source.read(None).map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    padding = {
        name: tf.zeros(spec.shape, spec.dtype)
        for name, spec in images.element_spec.items()
    }
    padding["index"] += splits.PADDING
    num_padding = num_elements - source.images_by_host[source.host]
    return images.concatenate(tf.data.Dataset.from_tensors(padding).repeat(num_padding))


def _check_labels(
    labels_from: str, dataset: str, *, is_training: bool, real_json: str | Path | None
) -> None:
    if labels_from not in tfds_shards.LABELS:
        raise ValueError(
            "image_dataset: labels_from must be one of"
            f" {', '.join(tfds_shards.LABELS)}, got {labels_from!r}."
        )
    is_real = labels_from == "real"
    if is_real and is_training:
        raise ValueError(
            "image_dataset: labels_from='real' is for evaluation. Set"
            " eval/image_dataset.labels_from alone."
        )
    if real_json is not None and not is_real:
        raise ValueError(
            f"image_dataset: real_json={str(real_json)!r} wants labels_from='real', got"
            f" {labels_from!r}."
        )
    if is_real and real_json is None and not dataset.startswith(tfds_shards.PREFIX):
        raise ValueError(
            "image_dataset: labels_from='real' wants real_json for a folder, got None."
            " Set it to the path of reassessed-imagenet's real.json."
        )


def _several_hot(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """int32 [L], -1 for none -> float32 [K], of 0 and 1."""
    return tf.minimum(tf.reduce_sum(tf.one_hot(labels, num_classes), axis=0), 1.0)
