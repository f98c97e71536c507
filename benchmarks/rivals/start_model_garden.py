"""Model Garden's ViT S/32 from a folder of JPEG files to its first training step.

python -m benchmarks.rivals.start_model_garden FOLDER BATCH_SIZE IMAGE_PX
"""

import glob
import os
import sys

sys.modules.setdefault("jax", None)  # TensorFlow takes its time to import it if there
os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402
from official.vision.modeling import classification_model  # noqa: E402
from official.vision.modeling.backbones import vit  # noqa: E402


def main(folder: str, batch_size: int, image_px: int) -> None:
    """Trains one step."""
    classes = sorted(os.listdir(folder))

    def read(path):
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        pixels = tf.image.resize(pixels, [image_px, image_px]) / 127.5 - 1.0
        name = tf.strings.split(path, os.sep)[-2]
        return pixels, tf.argmax(tf.equal(classes, name))

    files = tf.data.Dataset.from_tensor_slices(glob.glob(f"{folder}/*/*.jpg"))
    batches = files.repeat().shuffle(100).map(read, tf.data.AUTOTUNE)
    batches = batches.batch(batch_size, drop_remainder=True).prefetch(2)
    spec = tf_keras.layers.InputSpec(shape=[None, image_px, image_px, 3])
    model = classification_model.ClassificationModel(
        vit.VisionTransformer(
            input_specs=spec,
            patch_size=32,
            hidden_size=384,
            num_layers=12,
            num_heads=6,
            mlp_dim=1536,
            dropout_rate=0.0,
            pooler="gap",
        ),
        num_classes=len(classes),
        input_specs=spec,
    )
    optimizer = tf_keras.optimizers.SGD(0.03, momentum=0.9, global_clipnorm=1.0)

    @tf.function
    def step(pixels, labels):
        with tf.GradientTape() as tape:
            logits = model(pixels, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        gradients = tape.gradient(loss, model.trainable_variables)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    print("step 1, loss", step(*next(iter(batches))).numpy(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
