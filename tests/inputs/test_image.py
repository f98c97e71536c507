"""image_dataset, from a folder and from TFDS alike."""

import inspect
import json

import gin
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.inputs import image_files
from tl_tf.inputs import image

# Image n is grey 9 * n: a decoded one tells its number.
STEP, H, W = 9, 12, 15
CLASSES = ["ant", "bee", "cat"]
IMAGES = {"ant": 8, "bee": 9, "cat": 6}
NUM_IMAGES = 23
REAL = [[n % 3] if n % 4 else [] if n % 8 else [0, 2] for n in range(NUM_IMAGES)]
ARGUMENTS = {"split": "train", "batch_size": 4, "image_px": (H, W), "seed": 7}
TRAIN = {**ARGUMENTS, "is_training": True, "crop": "resize"}
EVAL = {**ARGUMENTS, "is_training": False, "crop": "resize"}
SOURCES = ["toy", "tfds:toy_set"]


def grey(number: int) -> np.ndarray:
    return np.full((H, W, 3), STEP * number, np.uint8)


def file_name(number: int) -> str:
    return f"ILSVRC2012_val_{number + 1:08d}.JPEG"


class ToySet(tfds.core.GeneratorBasedBuilder):
    """The images of the folder, in five shards."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None  # to look for it takes a package that TFDS does not bring

    def _info(self):
        label = tfds.features.ClassLabel(names=CLASSES)
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": label,
            "real_label": tfds.features.Sequence(label),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        class_of = [k for k, name in enumerate(CLASSES) for _ in range(IMAGES[name])]
        for number in range(NUM_IMAGES):
            yield (
                number,
                {
                    "image": grey(number),
                    "label": class_of[number],
                    "real_label": REAL[number],
                    "file_name": file_name(number),
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    number = 0
    for name in CLASSES:
        for _ in range(IMAGES[name]):
            path = folder / "toy" / "train" / name / file_name(number)
            image_files.write(path, grey(number))
            number += 1
    config = tfds.download.DownloadConfig(num_shards=5)
    ToySet(data_dir=folder).download_and_prepare(download_config=config)
    return folder


def numbers(pixels: np.ndarray) -> list[int]:
    """Which image each [..., H, W, 3] is."""
    first = pixels[..., 0, 0, 0].ravel() / STEP
    return first.round().astype(int).tolist()


def numpy_batches(split, num_batches: int = -1) -> list[dict]:
    return list(split.batches.take(num_batches).as_numpy_iterator())


def joined(split) -> dict[str, np.ndarray]:
    batches = numpy_batches(split)
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


def digests(iterator, num_batches: int) -> list:
    batches = (next(iterator) for _ in range(num_batches))
    return [
        (b["pixels"].numpy().tobytes(), b["labels"].numpy().tolist()) for b in batches
    ]


def class_of(number: int) -> int:
    return 0 if number < 8 else 1 if number < 17 else 2


@pytest.mark.parametrize("dataset", SOURCES)
def test_training_batches_are_static_and_free_of_strings(data_dir, dataset):
    split = image.image_dataset(data_dir, dataset=dataset, **TRAIN)
    assert split.batches.element_spec == {
        "pixels": tf.TensorSpec([4, H, W, 3], tf.uint8),
        "labels": tf.TensorSpec([4, 3], tf.float32),
    }
    assert (split.num_examples, split.num_batches, split.num_views) == (23, None, 1)
    assert split.classes == CLASSES and split.noun == "images"


@pytest.mark.parametrize("dataset", SOURCES)
def test_each_epoch_has_every_image_once_with_its_label(data_dir, dataset):
    arguments = {**TRAIN, "dataset": dataset, "batch_size": 1}
    batches = numpy_batches(image.image_dataset(data_dir, **arguments), 3 * NUM_IMAGES)
    seen = [numbers(batch["pixels"])[0] for batch in batches]
    for number, batch in zip(seen, batches, strict=True):
        assert batch["labels"].tolist() == [np.eye(3)[class_of(number)].tolist()]
    epochs = [seen[i : i + NUM_IMAGES] for i in range(0, len(seen), NUM_IMAGES)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_IMAGES))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("dataset", SOURCES)
def test_evaluation_has_every_image_once_and_says_which(data_dir, dataset):
    split = image.image_dataset(data_dir, dataset=dataset, **EVAL)
    assert split.batches.element_spec == {
        "pixels": tf.TensorSpec([4, 1, H, W, 3], tf.uint8),
        "labels": tf.TensorSpec([4, 3], tf.float32),
        "mask": tf.TensorSpec([4], tf.float32),
        "index": tf.TensorSpec([4], tf.int32),
    }
    rows = joined(split)
    assert split.num_batches == len(rows["mask"]) / 4 == 6
    assert rows["mask"].tolist() == [1.0] * 23 + [0.0]
    assert rows["index"][23:] == -1 and not rows["labels"][23:].any()
    assert sorted(rows["index"][:23]) == list(range(23)) == list(split.rows)
    seen = numbers(rows["pixels"][:23])
    assert sorted(seen) == list(range(23))
    assert rows["labels"][:23].argmax(1).tolist() == [class_of(n) for n in seen]
    ids = [split.examples[index] for index in rows["index"][:23]]
    if dataset == "toy":
        assert ids == [f"{CLASSES[class_of(n)]}/{file_name(n)}" for n in seen]
    else:
        assert ids == [f"train-{index}" for index in rows["index"][:23]]
    assert split.coverage == {
        "images_expected": 23,
        "images_read": 23,
        "images_skipped": 0,
        "share": 1.0,
    }


@pytest.mark.parametrize("dataset", SOURCES)
@pytest.mark.parametrize("num_hosts", [2, 6])
def test_hosts_share_the_images_out(data_dir, dataset, num_hosts):
    """Of five shards two hosts read whole ones, six every sixth image of each."""
    evaluated, trained, num_batches = [], [], set()
    for host in range(num_hosts):
        hosts = {"dataset": dataset, "num_hosts": num_hosts, "host": host}
        split = image.image_dataset(data_dir, **EVAL, **hosts)
        rows = joined(split)
        num_batches |= {split.num_batches, len(rows["mask"]) / 4}
        is_image = rows["mask"] == 1
        evaluated += numbers(rows["pixels"][is_image])
        arguments = {**TRAIN, **hosts, "batch_size": 1}
        split = image.image_dataset(data_dir, **arguments)
        assert split.num_examples == NUM_IMAGES
        batches = numpy_batches(split, int(is_image.sum()))
        trained += [numbers(batch["pixels"])[0] for batch in batches]
    assert sorted(evaluated) == sorted(trained) == list(range(NUM_IMAGES))
    assert len(num_batches) == 1


@pytest.mark.parametrize("dataset", SOURCES)
def test_parts_of_a_split_are_disjoint_and_complete(data_dir, dataset):
    seen = []
    for split in "train[:30%]", "train[30%:80%]", "train[80%:]":
        arguments = {**EVAL, "dataset": dataset, "split": split}
        part = image.image_dataset(data_dir, **arguments)
        rows = joined(part)
        assert rows["mask"].sum() == part.num_examples == len(part.examples)
        seen.append(numbers(rows["pixels"][rows["mask"] == 1]))
    assert [len(part) for part in seen] == [7, 11, 5]
    assert sorted(sum(seen, [])) == list(range(NUM_IMAGES))


CROPS = {
    "inception": {"crop": "inception"},
    "pad": {"crop": "pad", "pad_px": 3},
    "random": {"crop": "random", "resize_px": (20, 22)},
    "resize": {"crop": "resize", "erasing_share": 0.5},
}


@pytest.fixture(scope="module")
def noise_dir(tmp_path_factory):
    """Images of different sizes, orientations and formats."""
    folder = tmp_path_factory.mktemp("noise")
    for number in range(9):
        path = folder / "noise" / "train" / "k" / f"{number}.jpg"
        pixels = image_files.smooth(20 + number, 30, seed=number)
        image_files.write(path, pixels, orientation=1 + number % 8)
    path = folder / "noise" / "train" / "k" / "9.PNG"
    image_files.write(path, image_files.smooth(9, 8, seed=9))
    return folder


@pytest.mark.parametrize("crop", CROPS)
def test_the_seed_decides_the_stream_and_the_global_seed_does_not(noise_dir, crop):
    arguments = {**TRAIN, "dataset": "noise", "flip": True, **CROPS[crop]}

    def stream(**changes):
        split = image.image_dataset(noise_dir, **{**arguments, **changes})
        return digests(iter(split.batches), 6)

    tf.random.set_seed(1)
    first = stream()
    tf.random.set_seed(2)
    assert stream() == first
    assert stream(seed=8) != first
    assert len({pixels for pixels, _ in first}) == 6


def test_the_stream_is_the_same_for_one_thread(noise_dir, monkeypatch):
    arguments = {**TRAIN, "dataset": "noise", **CROPS["inception"]}

    def stream():
        return digests(iter(image.image_dataset(noise_dir, **arguments).batches), 6)

    many = stream()
    monkeypatch.setattr(tf.data, "AUTOTUNE", 1)
    assert stream() == many


@pytest.mark.parametrize("dataset", SOURCES)
@pytest.mark.parametrize("batches_before", [1, 6, 9])
def test_a_restored_iterator_continues_the_stream(
    data_dir, tmp_path, dataset, batches_before
):
    """In the first epoch, at its end, and in the next one."""
    arguments = {**TRAIN, "dataset": dataset, "flip": True, **CROPS["pad"]}

    def iterator():
        return iter(image.image_dataset(data_dir, **arguments).batches)

    unbroken = digests(iterator(), 15)
    stopped = iterator()
    digests(stopped, batches_before)
    path = tf.train.Checkpoint(iterator=stopped).write(str(tmp_path / "ckpt"))
    del stopped
    resumed = iterator()
    tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
    assert digests(resumed, 15 - batches_before) == unbroken[batches_before:]


def test_evaluation_crops_are_those_of_the_authors(noise_dir):
    """Whole to image_px; or short side to resize_px, then the centre."""
    arguments = {**EVAL, "dataset": "noise", "image_px": 10}
    whole = joined(image.image_dataset(noise_dir, **arguments))
    centre = {**arguments, "crop": "center", "resize_px": 12}
    centre = joined(image.image_dataset(noise_dir, **centre))
    names = image.image_dataset(noise_dir, **arguments).examples
    for row, name in enumerate(names):
        pixels = image_files.upright(noise_dir / "noise" / "train" / name)
        want = tf.image.resize(pixels, [10, 10])
        np.testing.assert_allclose(whole["pixels"][row, 0], want, atol=8)
        height, width = pixels.shape[:2]
        scale = 12 / min(height, width)
        small = tf.image.resize(pixels, [round(height * scale), round(width * scale)])
        y, x = (small.shape[0] - 10) // 2, (small.shape[1] - 10) // 2
        want = small[y : y + 10, x : x + 10]
        np.testing.assert_allclose(centre["pixels"][row, 0], want, atol=8)


def test_flip_is_left_to_the_recipe(tmp_path):
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[:, W // 2 :] = 200
    for number in range(9):
        image_files.write(tmp_path / f"a/train/k/{number}.png", pixels)
    arguments = {**TRAIN, "dataset": "a", "batch_size": 9}
    for flip, want in (False, {False}), (True, {False, True}):
        split = image.image_dataset(tmp_path, **arguments, flip=flip)
        seen = numpy_batches(split, 1)[0]["pixels"].astype(int)
        left_minus_right = (seen[:, :, :5] - seen[:, :, -5:]).mean((1, 2, 3))
        assert set(left_minus_right > 0) == want


@pytest.mark.parametrize("dataset", SOURCES)
@pytest.mark.parametrize("from_json", [True, False])
def test_real_labels_are_several_or_none(data_dir, tmp_path, dataset, from_json):
    if dataset == "toy" and not from_json:
        pytest.skip("a folder has its classes and no more")
    arguments = {**EVAL, "dataset": dataset, "labels_from": "real"}
    if from_json:
        (tmp_path / "real.json").write_text(json.dumps(REAL))
        arguments["real_json"] = tmp_path / "real.json"
    rows = joined(image.image_dataset(data_dir, **arguments))
    for number, labels in zip(
        numbers(rows["pixels"][:23]), rows["labels"][:23], strict=True
    ):
        assert labels.tolist() == [float(k in REAL[number]) for k in range(3)]


def test_randaugment_reaches_the_stream(data_dir):
    arguments = {**TRAIN, "dataset": "toy", "batch_size": NUM_IMAGES}
    split = image.image_dataset(data_dir, **arguments, randaugment_layers=1)
    (batch,) = numpy_batches(split, 1)
    assert sorted(numbers(batch["pixels"])) != list(range(NUM_IMAGES))


def test_a_damaged_file_is_named(tmp_path):
    for number in range(5):
        path = tmp_path / f"a/train/k/{number}.jpg"
        image_files.write(path, image_files.smooth(40, 50, seed=number))
    damaged = tmp_path / "a/train/k/3.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    split = image.image_dataset(tmp_path, **{**EVAL, "dataset": "a"})
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        numpy_batches(split)
    said = split.explain(error.value)
    assert said.startswith(f"{damaged}: wanted a whole image, got ")
    assert said.endswith("Replace or remove the file.")


def test_a_file_that_went_away_is_named(tmp_path):
    for number in range(5):
        path = tmp_path / f"a/train/k/{number}.jpg"
        image_files.write(path, image_files.smooth(40, 50))
    split = image.image_dataset(tmp_path, **{**EVAL, "dataset": "a"})
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError) as error:
        numpy_batches(split)
    assert str(path) in split.explain(error.value)


def test_skipped_files_are_reported_by_an_evaluation(tmp_path):
    for name in "abcd":
        image_files.write(tmp_path / f"s/train/k/{name}.png", grey(1))
    (tmp_path / "s/train/k/b.png").write_bytes(b"no image")
    arguments = {"dataset": "s", "max_broken_share": 0.25}
    split = image.image_dataset(tmp_path, **EVAL, **arguments)
    assert split.skipped == [{"id": "k/b.png", "row": 1, "labels": [0]}]
    assert (split.examples, split.rows) == (
        ["k/a.png", "k/c.png", "k/d.png"],
        [0, 2, 3],
    )
    assert split.coverage == {
        "images_expected": 4,
        "images_read": 3,
        "images_skipped": 1,
        "share": 0.75,
    }
    assert joined(split)["mask"].sum() == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"crop": "center"}, "crop in training must be one of .*'pad'.*, got center"),
        ({"image_px": 0}, "image_px must be at least 1, got 0"),
        ({"crop": "pad"}, "pad_px with crop='pad' must be set, got None"),
        ({"pad_px": 3}, "pad_px with crop='resize' must be None, got 3"),
        ({"crop": "random"}, "resize_px with crop='random' must be set"),
        ({"crop": "random", "resize_px": 13}, "resize_px must be at least .12, 15."),
        ({"crop": "pad", "pad_px": 12}, "pad_px of a reflecting pad must be below 12"),
        ({"crop": "pad", "pad_px": 2, "pad_mode": "x"}, "pad_mode must be one of"),
        ({"area_range": (0, 1)}, "area_range must be in 0..1"),
        ({"erasing_share": 2}, "erasing_share must be in 0..1, got 2"),
        ({"randaugment_layers": -1}, "randaugment_layers must be >= 0, got -1"),
        ({"randaugment_magnitude": 11}, "randaugment_magnitude must be in 0..10"),
        ({"is_training": False, "flip": True}, "of an evaluation must be False, 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"num_hosts": 2, "host": 2}, r"host must be in 0\.\.1, got 2"),
        ({"num_hosts": 24}, "24 hosts want an image each, split 'train' has 23"),
        ({"labels_from": "x"}, "labels_from must be one of label, real, got 'x'"),
        ({"labels_from": "real"}, "labels_from='real' is for evaluation"),
        ({"real_json": "a"}, "real_json='a' wants labels_from='real', got 'label'"),
        ({"split": "train[10]"}, "split must be a folder's name, or a part of it"),
    ],
)
def test_arguments_are_checked(data_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        image.image_dataset(data_dir, **{**TRAIN, "dataset": "toy", **changes})


def test_what_is_for_folders_is_refused_elsewhere_and_the_other_way_round(data_dir):
    with pytest.raises(ValueError, match="max_broken_share is for folders"):
        arguments = {"dataset": "tfds:toy_set", "max_broken_share": 0.1}
        image.image_dataset(data_dir, **TRAIN, **arguments)
    with pytest.raises(ValueError, match="wants real_json for a folder, got None"):
        arguments = {"dataset": "toy", "labels_from": "real"}
        image.image_dataset(data_dir, **EVAL, **arguments)


def test_scopes_configure_training_and_evaluation_apart(data_dir):
    """As a recipe does it."""
    with gin.unlock_config():
        gin.parse_config("""
            image_dataset.dataset = 'toy'
            image_dataset.image_px = 10
            train/image_dataset.crop = 'inception'
            eval/image_dataset.crop = 'resize'
        """)
    arguments = {"split": "train", "batch_size": 2, "seed": 1}
    try:
        for is_training, scope in (True, "train"), (False, "eval"):
            with gin.config_scope(scope):
                split = image.image_dataset(
                    data_dir, is_training=is_training, **arguments
                )
            assert split.batches.element_spec["pixels"].shape[-2] == 10
    finally:
        gin.clear_config()


def test_every_argument_is_documented():
    parameters = set(inspect.signature(image.image_dataset).parameters)
    text = inspect.getdoc(image.image_dataset)
    assert not {name for name in parameters if f"\n  {name}: " not in text}
