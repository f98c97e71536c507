import inspect

import numpy as np
import pytest
import tensorflow as tf

from tl_tf import config
from tl_tf.inputs import randaugment

with config.registers_nothing():
    from official.vision.ops import augment as garden

H, W = 17, 23


def image() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8))


def test_operations_are_model_gardens():
    assert randaugment.OPERATIONS == tuple(garden.RandAugment().available_ops)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@pytest.mark.parametrize("sign_draw", [0.1, 0.9])
def test_an_operation_is_model_gardens(name, sign_draw, monkeypatch):
    """Its draws replaced by ours, its pixels scaled from an image of 224."""
    draws = [0.0, sign_draw, 0.3, 0.6]
    sizes = iter([int(0.3 * H), int(0.6 * W)])
    is_positive = sign_draw >= 0.5
    cutout_px = 40 * H / 224
    translate_px = 100 * (W if name.endswith("X") else H) / 224
    with monkeypatch.context() as patch:
        patch.setattr(
            garden.tf.random,
            "uniform",
            lambda *_, **__: next(sizes) if name == "Cutout" else float(is_positive),
        )
        function, _, args = garden._parse_policy_info(
            name, 1.0, 9.0, [128] * 3, cutout_px, translate_px
        )
        assert "bboxes" in inspect.signature(function).parameters
        want, _ = function(image(), None, *args)
    got = randaugment.apply(name, image(), magnitude=9.0, draws=tf.constant(draws))
    np.testing.assert_array_equal(got, want)


def augmented(num_images: int) -> list[bytes]:
    def augment(index):
        seed = tf.stack([4, index])
        return randaugment.randaugment(image(), layers=1, magnitude=9.0, seed=seed)

    images = tf.data.Dataset.range(num_images, output_type=tf.int32).map(augment)
    assert images.element_spec == tf.TensorSpec([H, W, 3], tf.uint8)
    return [pixels.tobytes() for pixels in images.as_numpy_iterator()]


def test_the_seed_decides_and_the_global_seed_does_not():
    tf.random.set_seed(1)
    first = augmented(12)
    tf.random.set_seed(2)
    assert augmented(12) == first
    assert len(set(first)) > 5


def test_nothing_is_drawn_from_the_global_generator():
    @tf.function
    def augment(seed):
        return randaugment.randaugment(image(), layers=1, magnitude=9.0, seed=seed)

    graph = augment.get_concrete_function(tf.TensorSpec([2], tf.int32)).graph
    nodes = [
        node
        for function in [graph.as_graph_def()]
        for node in [*function.node]
        + [n for f in function.library.function for n in f.node_def]
    ]
    assert not {n.op for n in nodes if n.op.startswith("Random")}


def test_one_image_in_17_is_left_alone_by_one_layer():
    images = augmented(170)
    assert 3 <= images.count(image().numpy().tobytes()) <= 24


def test_layers_follow_each_other():
    seeds = tf.random.split([4, 9], 2)
    want = image()
    for seed in tf.unstack(seeds):
        draws = tf.random.stateless_uniform([4], seed)
        name = [*randaugment.OPERATIONS, None][int(draws[0] * 17)]
        assert name is not None
        want = randaugment.apply(name, want, magnitude=5.0, draws=draws)
    got = randaugment.randaugment(image(), layers=2, magnitude=5.0, seed=[4, 9])
    np.testing.assert_array_equal(got, want)
