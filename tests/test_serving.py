import json

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tl_tf import config, losses, serving
from tl_tf.inputs import crops, video, views

T, H, W, K = 3, 10, 15, 4
TRAINED = serving.Trained(
    dataset="toy",
    noun="videos",
    classes=["a", "b", "c", "d"],
    frames={"fps": 6.0, "short_side": H},
    coverage={"train": {"share": 1.0}},
)


class Brightness(tf_keras.Model):
    """Logits that are the mean of each quarter of a clip's rows, in 1 / 100."""

    def call(self, x, training=False, seed=None):
        rows = tf.reduce_mean(x, axis=[1, 3, 4])  # [B, crop]
        maps = tf.reduce_mean(x, axis=-1, keepdims=True)  # [B, T, crop, crop, 1]
        return rows[:, :K] * 100, {"block_0/token_maps": maps, "other": x}


def frames_of(num_frames):
    """Grey level 10 times the frame's number, so that a view's frames can be read."""
    levels = 10 * np.arange(num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], [num_frames, H, W, 3]).copy()


def sampler(**changes):
    fields = {"num_frames": T, "crop_px": 5, "short_side_px": H, "num_classes": K}
    return views.Views(is_training=False, fps=6.0, **fields | changes)


def classifier(merge="max"):
    return serving.Classifier(
        Brightness(),
        sampler=sampler(num_clips=2),
        loss=losses.Loss("sigmoid"),
        merge=merge,
        trained=TRAINED,
    )


def test_views_of_pixels_are_the_clips_that_evaluation_picks():
    found = sampler(num_clips=2, num_crops=3).views_of(tf.constant(frames_of(7)))
    assert found.shape == [6, T, 5, 5, 3]
    levels = found.numpy()[..., 0, 0, 0]  # [V, T]
    np.testing.assert_array_equal(levels[0], [0, 10, 20])  # from the start
    np.testing.assert_array_equal(levels[3], [40, 50, 60])  # to the end


def test_views_of_pixels_equal_those_of_the_same_frames_encoded():
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, [6, 3, 4, 3], np.uint8)
    frames = np.kron(small, np.ones([1, 8, 8, 1], np.uint8))  # [6, 24, 32, 3]
    jpegs = [tf.io.encode_jpeg(frame, quality=95).numpy() for frame in frames]
    decoded = tf.stack([tf.io.decode_jpeg(jpeg) for jpeg in jpegs])
    views_of = sampler(num_clips=2, num_crops=3, short_side_px=12, crop_px=9).views_of
    difference = np.abs(
        views_of(tf.constant(jpegs)).numpy().astype(int) - views_of(decoded).numpy()
    )
    assert difference.max() <= 1  # a window's edge is decoded with less around it


def test_an_image_file_and_its_pixels_give_the_same_view():
    cropper = crops.Crops(is_training=False, crop="center", image_px=6, resize_px=8)
    pixels = np.random.default_rng(2).integers(0, 256, [11, 17, 3], np.uint8)
    png = tf.io.encode_png(pixels)
    np.testing.assert_array_equal(cropper.views_of(png), cropper.views_of(pixels))


@pytest.mark.parametrize("merge, merged", [("max", np.max), ("mean", np.mean)])
def test_scores_are_merged_over_views(merge, merged):
    served = classifier(merge)
    pixels = tf.stack([served.views_of(tf.constant(frames_of(n))) for n in (7, 9)])
    found = served.classify(pixels).numpy()
    # By hand: of each view, sigmoid of 100 times its frames' mean level in -1..1.
    levels = np.array([[[0, 10, 20], [40, 50, 60]], [[0, 10, 20], [60, 70, 80]]])
    logits = 100 * (levels.mean(axis=-1) / 127.5 - 1)  # [B, V]
    wanted = merged(1 / (1 + np.exp(-logits)), axis=1)
    np.testing.assert_allclose(found, np.repeat(wanted[:, None], K, 1), rtol=1e-5)


def test_a_model_without_features_is_told_what_to_add():
    pixels = classifier().views_of(tf.constant(frames_of(7)))[tf.newaxis]
    with pytest.raises(ValueError, match="wanted an endpoint pre_logits or pooled"):
        classifier().view_outputs(pixels)


def test_look_gives_the_token_maps_alone():
    served = classifier()
    scores, maps = served.look(served.views_of(tf.constant(frames_of(7))))
    assert scores.shape == [2, K]
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "block_0/token_maps": (2, T, 5, 5, 1)
    }


def test_what_was_trained_on_is_read_back(tmp_path):
    TRAINED.write(tmp_path / "run")
    assert serving.Trained.read(tmp_path / "run") == TRAINED
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "data.json"]


@pytest.mark.parametrize("content", [None, "{", '{"dataset": 1}'])
def test_a_missing_or_broken_description_is_one_sentence(tmp_path, content):
    if content:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match="wanted the description of the data"):
        serving.Trained.read(tmp_path)


def test_the_sampler_is_that_of_the_recipes_evaluation():
    from tl_tf import experiment  # noqa: F401  recipes bind its modes

    gin.clear_config()
    config.load(["gin/kinetics400_vivit_l16_tl16_12.gin"], [])
    trained = {**vars(TRAINED), "classes": ["x"] * 400}
    found = serving.build_sampler(serving.Trained(**trained))
    with gin.config_scope("eval"):
        bound = gin.get_bindings(video.clip_dataset)
    names = ("num_frames", "crop_px", "num_clips", "num_crops", "short_side_px")
    assert {n: getattr(found, n) for n in names} == {n: bound[n] for n in names}
    assert (found.num_clips, found.num_crops, found.fps) == (4, 3, 6.0)
    gin.clear_config()


def test_the_description_is_one_json_object(tmp_path):
    TRAINED.write(tmp_path)
    raw = json.loads((tmp_path / "data.json").read_text())
    assert raw["frames"] == {"fps": 6.0, "short_side": H}
