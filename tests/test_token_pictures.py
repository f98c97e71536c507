"""Whose importance, whose attention, and the files that --mode=visualize writes."""

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from tests import tiny
from tl_tf import experiment, losses, media, serving, token_pictures
from tl_tf.inputs import crops, views
from tl_tf.layers import attention, bottleneck, vector_attention
from tl_tf.models import differences, vit, vivit, x2p1d

B, T, H, W, S, K = 2, 4, 3, 5, 3, 4
SMALL = {"patch_px": 8, "hidden_size": 12, "num_heads": 2, "mlp_size": 16, "depth": 3}
TOKENS = {"insert_before_block": 1, "num_tokens": S}


def pixels_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, [*shape, 3], np.uint8)


def randomised(model: tf_keras.Model) -> tf_keras.Model:
    """With weights that let everything reach the logits."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    return model


def build_vivit(**options) -> tf_keras.Model:
    sizes = {"num_frames": T, "tubelet_frames": 2, "image_px": (24, 16), **SMALL}
    return randomised(vivit.build_vivit(K, **TOKENS, **sizes | options))


def build_vit(**options) -> tf_keras.Model:
    return randomised(vit.build_vit(K, image_px=(24, 16), **SMALL, **TOKENS, **options))


def build_x2p1d(**options) -> tf_keras.Model:
    return randomised(
        x2p1d.build_x2p1d(
            K,
            num_frames=T,
            module="token_learner",
            module_blocks=(0,),
            num_tokens=S,
            stage_depths=(1, 1, 1, 1),
            stage_strides=(2, 2, 1, 1),
            width=0.1,
            num_heads=1,
            **options,
        )
    )


def test_importance_is_what_the_logit_loses_without_the_token():
    model, pixels, k = build_vivit(depth=2), pixels_of(B, T, 24, 16), 2
    # A block that does nothing: behind the tokens are a norm, a mean and a classifier.
    block = model.blocks[1]
    for variable in (*block.attention.out.variables, *block.mlp.out.variables):
        variable.assign(tf.zeros_like(variable))
    _, importance, _ = token_pictures.look_closely(
        model, pixels, class_index=k, name="block_1"
    )
    _, endpoints = model(pixels.astype(np.float32) / 127.5 - 1)
    tokens = endpoints["block_1/learned_tokens"].numpy()  # [B, T' * S, C]
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    # Of a token that is zero the norm leaves its offset.
    kernel = model.norm.gamma.numpy() * model.classifier.kernel.numpy()[:, k]
    lost = (centred / scale @ kernel).reshape([B, T // 2, S])
    want = lost.sum(axis=1) / (T // 2 * S)  # of the mean over T' * S tokens
    np.testing.assert_allclose(importance, want, atol=1e-4 * np.abs(want).max())


# How it is built, the TokenLearner's name, M, and who attends with how many tokens.
MODELS = {
    "vivit, fuser": (
        lambda: differences.OnDifferences(build_vivit(restore="fuser"), gain=4.0),
        "block_2",
        T // 2,
        {"block 2": S},
    ),
    "vivit, factorised": (
        lambda: build_vivit(encoder_form="factorised", temporal_depth=2),
        "block_1",
        T // 2,
        {"over time, block 0": 1, "over time, block 1": 1},
    ),
    "vivit, class token": (
        lambda: build_vivit(head="token"),
        "block_1",
        T // 2,
        {"block 2": S},
    ),
    "vit": (
        lambda: build_vit(tokenizer="v1.0"),
        "block_1",
        1,
        {"block 1": S, "block 2": S},
    ),
    "x2p1d": (
        lambda: build_x2p1d(tokenizer="volume", window_frames=2),
        "stage_4/block_0",
        T // 2,
        {"stage_4/block_0": S},
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_importance_and_attention_of_each_model(kind):
    build, name, num_windows, attending = MODELS[kind]
    model = build()
    size = {"vit": [24, 16], "x2p1d": [T, 32, 40]}.get(kind, [T, 24, 16])
    pixels, k = pixels_of(1, *size), 2
    frames = tf.cast(pixels, tf.float32) / 127.5 - 1
    before, endpoints = model(frames)
    maps, importance, found = token_pictures.look_closely(
        model, pixels, class_index=k, name=name
    )
    np.testing.assert_array_equal(model(frames)[0], before)  # all is as it was
    np.testing.assert_array_equal(maps, endpoints[f"{name}/token_maps"])
    assert importance.shape == [1, S] and len(set(importance.numpy()[0])) == S
    assert np.abs(importance).max() > 1e-3  # the tokens are heard
    assert {n: w.shape[2] for n, w in found.items()} == attending
    assert list(found) == list(attending)
    for weights in found.values():
        assert (
            weights.shape[1:3]
            == weights.shape[3:]
            == [num_windows, *weights.shape[2:3]]
        )
        sums = weights.numpy().sum(axis=(3, 4))
        # What a class token gets is left out.
        assert (sums < 1).all() if "class" in kind else np.allclose(sums, 1, atol=1e-5)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_attention_of_a_block_is_the_mean_over_its_heads():
    block, x = attention.EncoderBlock(2, 8), random(B, 7, 6)
    block(x)
    y = block.attention_norm(x).numpy()
    query, key = (
        np.einsum("blc,cad->bald", y, layer.kernel.numpy())
        + layer.bias.numpy()[:, None]
        for layer in (block.attention.query, block.attention.key)
    )
    scores = np.einsum("bald,bamd->balm", query, key) / np.sqrt(3)  # 6 / 2 channels
    np.testing.assert_allclose(
        token_pictures._block_weights(block, x),
        softmax(scores, axis=-1).mean(axis=1),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "layer, channels",
    [
        (vector_attention.VectorTransformer(), 1),
        (bottleneck.Mhsa(1), 5),
        (bottleneck.PriorAttention(), 5),
    ],
)
def test_the_weights_are_those_of_the_layer(layer, channels):
    x = random(B, 7, channels)
    layer(x)
    for variable in layer.trainable_variables:
        variable.assign(random(*variable.shape))
    weights = token_pictures._transformer_weights(layer, tf.constant(x))
    attended = np.einsum("bnm,bmc->bnc", weights, layer.value(x))
    np.testing.assert_allclose(layer(x), attended, atol=1e-5)


def test_vector_attention_is_averaged_over_channels():
    layer, x = vector_attention.VectorTransformer(), random(B, 7, 3)
    layer(x)
    q, k = (x @ f.kernel.numpy() for f in (layer.query, layer.key))
    want = softmax(q[:, :, None] * k[:, None], axis=2).mean(axis=-1)
    found = token_pictures._transformer_weights(layer, tf.constant(x))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_mixer_has_no_attention():
    x = tf.constant(random(B, 7, 3))
    assert token_pictures._transformer_weights(bottleneck.MlpMixer(), x) is None


def classifier_of(model, sampler, kind="softmax") -> serving.Classifier:
    is_video = isinstance(sampler, views.Views)
    return serving.Classifier(
        model,
        sampler=sampler,
        loss=losses.Loss(kind),
        merge="mean",
        trained=serving.Trained(
            dataset="toy",
            noun="videos" if is_video else "images",
            classes=["a", "b", "c", "d"],
            frames={"fps": 6.0, "short_side": 30} if is_video else {},
            coverage={},
        ),
    )


def sampler_of_videos(**changes) -> views.Views:
    fields = {"num_frames": T, "crop_px": 24, "short_side_px": 28, "num_clips": 2}
    return views.Views(is_training=False, fps=6.0, num_classes=K, **fields | changes)


def moving(num_frames: int) -> np.ndarray:
    """A light square that goes to the right over a slope of grey."""
    frames = np.zeros([num_frames, 60, 90, 3], np.uint8)
    frames[:] = np.linspace(0, 150, 90, dtype=np.uint8)[:, None]
    for t, frame in enumerate(frames):
        frame[20:40, 2 * t : 2 * t + 20] = 255
    return frames


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "square.mp4"
    media.write_mp4(path, moving(24), fps=12)
    return path


@pytest.fixture(scope="module")
def served():
    sizes = {"num_frames": T, "tubelet_frames": 2, "image_px": 24}
    model = randomised(vivit.build_vivit(K, **sizes, **SMALL, **TOKENS))
    return classifier_of(model, sampler_of_videos())


def test_what_is_drawn_is_what_the_model_saw_in_finer_pixels(served, video):
    looker = token_pictures.Looker(served, None, step=7)
    pixels, fine, seconds = looker._read(video)
    assert fine.shape == [2, T, 240, 240, 3]
    np.testing.assert_allclose(seconds * 6, [[0, 1, 2, 3], [8, 9, 10, 11]])
    coarse = tf.image.resize(fine[0], [24, 24], method="area")
    difference = np.abs(coarse - pixels[0].numpy().astype(float))
    assert difference.mean() < 5  # and edges are not as sharp


def test_a_video_is_shown_at_the_view_that_decides(served, video):
    look = token_pictures.Looker(served, "block_1", step=7).look(video)
    frames = media.read_video(video, fps=6.0, short_side=30).frames
    seen = served.views_of(tf.constant(frames))
    view_scores = served.view_scores(seen[None])[0].numpy()
    merged = view_scores.mean(axis=0)
    view = view_scores[:, merged.argmax()].argmax()
    label = f"{'abcd'[merged.argmax()]} {merged.max():.2f}"
    start, end = ((0.0, 0.5), (8 / 6, 11 / 6))[view]
    first, second = look.title.splitlines()
    assert first.startswith(f"square.mp4    {label}")
    assert second == f"frames from {start:.2f} s to {end:.2f} s, block_1, step 7"
    np.testing.assert_allclose(look.seconds, [start, start + 2 / 6])
    np.testing.assert_allclose(
        look.maps, served.look(seen[view][None])[1]["block_1/token_maps"][0], atol=1e-6
    )
    assert look.importance.shape == (S,)
    assert list(look.attention) == ["block 1", "block 2"]


def test_an_image_gets_a_sheet_and_the_attention_of_its_tokens(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels_of(50, 40)).save(path)
    cropper = crops.Crops(is_training=False, crop="resize", image_px=(24, 16))
    served = classifier_of(build_vit(), cropper)
    look = token_pictures.Looker(served, None, step=7).look(path)
    assert look.frames.shape == (1, 360, 240, 3) and look.seconds is None
    assert token_pictures.write_pictures(tmp_path / "out", look) == [
        ".png",
        ".attention.png",
    ]
    for ending in (".png", ".attention.png"):
        assert Image.open(tmp_path / f"out{ending}").format == "PNG"


RECIPE = "gin/folder_vivit_tl.gin"


def run(mode: str, data_dir, model_dir, *bindings: str, recipe=RECIPE, **options):
    gin.clear_config()
    tiny.load(recipe, *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None, **options)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("visualize")
    run("train", tiny_data, model_dir)
    return model_dir


def test_the_mode_draws_files_and_names_broken_ones(
    trained, tiny_data, video, tmp_path, capfd
):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:500])
    output = tmp_path / "out"
    inputs = (str(video), str(broken), str(video.parent))
    run("visualize", tiny_data, trained, inputs=inputs, output_dir=output)
    assert sorted(path.name for path in output.iterdir()) == [
        "square.attention.png",
        "square.png",
        "square.webp",
    ]
    clip = Image.open(output / "square.webp")
    assert clip.n_frames == 4 and clip.info["loop"] == 0
    printed = capfd.readouterr().out
    assert "visualize  the learned tokens of block_1; step 2" in printed
    assert f"visualize  {broken}: left out: " in printed
    assert "listens to token " in printed and "1 files could not be drawn" in printed


def test_files_of_which_none_can_be_drawn_are_an_error(served, tmp_path, capfd):
    paths = [tmp_path / "broken.mp4", tmp_path / "picture.png"]
    paths[0].write_bytes(b"no video")
    Image.fromarray(pixels_of(50, 40)).save(paths[1])
    looker = token_pictures.Looker(served, None, step=7)
    with pytest.raises(ValueError, match="none of 2 files can be drawn"):
        token_pictures.draw_files(paths, looker, tmp_path)
    printed = capfd.readouterr().out
    assert "picture.png: left out: unreadable (no video, and the model" in printed


def test_a_stream_is_not_drawn(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="draws files, not a stream"):
        run("visualize", tiny_data, tmp_path, inputs=("-",))


def test_an_unknown_token_learner_names_the_known_ones(served):
    message = r"visualize.token_learner must be one of block_1, got 'block_9'"
    with pytest.raises(ValueError, match=message):
        token_pictures.Looker(served, "block_9", step=7)


class Other(tf_keras.Model):
    """Somebody's own model, whose maps are the pixels, if it has maps."""

    def __init__(self, endpoint: str):
        super().__init__()
        self.endpoint = endpoint

    def call(self, x, training=False, seed=None):
        return tf.reduce_mean(x, axis=[1, 2, 3]), {self.endpoint: x}


def test_of_other_models_the_maps_alone_are_drawn(video, tmp_path):
    served = classifier_of(Other("token_maps"), sampler_of_videos())
    look = token_pictures.Looker(served, None, step=7).look(video)
    assert look.importance is None and look.attention == {}
    assert look.maps.shape == (T, 24, 24, 3)
    assert token_pictures.write_pictures(tmp_path / "x", look) == [".png", ".webp"]


def test_a_model_without_token_maps_is_one_sentence():
    served = classifier_of(Other("pooled"), sampler_of_videos())
    with pytest.raises(ValueError, match="this model has no token maps to draw"):
        token_pictures.Looker(served, None, step=7)
