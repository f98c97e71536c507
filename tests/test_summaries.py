import numpy as np
import tensorflow as tf

from tests import test_results
from tl_tf import summaries

CLASSES = ["walk", "run", "sit"]


def test_pictures_and_text_reach_tensorboard(tmp_path):
    frames = np.zeros([3, 4, 20, 30, 3], np.uint8)
    labels = np.eye(3, dtype=np.float32)
    batch = {"pixels": tf.constant(frames), "labels": tf.constant(labels)}
    maps = np.random.default_rng(0).random([3, 4, 2, 3, 5])
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        summaries.show_inputs("train/inputs", batch, CLASSES, step=1)
        summaries.show_token_maps(
            "eval/token_maps", frames, labels, maps, CLASSES, step=1
        )
        summaries.show_config(0)
        tf.summary.flush()
    found = test_results.events(tmp_path)
    assert {"train/inputs", "eval/token_maps", "config"} <= set(found)
    width, height, *pictures = tf.make_ndarray(found["eval/token_maps"])
    assert int(height) > 100 and len(pictures) == summaries.SHOWN_EXAMPLES
    assert pictures[0].startswith(b"\x89PNG")
