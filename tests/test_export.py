"""What is exported gives the model's outputs, without this code."""

import hashlib
import io
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests import contract, shards, tiny
from tl_tf import (
    cost,
    experiment,
    export,
    losses,
    model_card,
    records,
    serving,
    tflite,
)
from tl_tf.inputs import crops, views
from tl_tf.layers import vector_attention
from tl_tf.models import differences, vit, vivit, x2p1d

RECIPE = "gin/folder_vivit_tl.gin"
# Two steps that change the averaged weights enough for scores that differ.
QUICKLY = ("LEARNING_RATE = 0.1", "build_optimizer.ema_decay = 0.1")
CLASSES = ["left", "grün | b", "up"]
K, T, PX, FPS = len(CLASSES), 8, 32, 6.0
# (examples, frames, height, width) of a batch: other numbers, lengths and sizes.
BATCHES = {"one": (1, 5, 40, 60), "three": (3, 21, 50, 36)}

# Runs each signature on what an .npz holds for it, in a Python that has no tl_tf.
LOAD_AND_RUN = """
import json, sys
for name in ("tl_tf", "tf_keras", "keras", "official", "gin", "data"):
    sys.modules[name] = None  # to import it is an error
import numpy as np
import tensorflow as tf
for folder in sys.argv[1:]:
    signatures = tf.saved_model.load(folder).signatures
    inputs = dict(np.load(folder + "/inputs.npz", allow_pickle=False))
    found = {}
    for key, value in inputs.items():
        name, batch = key.split("-")
        tensor = tf.constant(value)
        if name == "encoded":  # of numpy's strings the last zeros would be lost
            tensor = tf.io.decode_base64(tensor)
        (argument,) = signatures[name].structured_input_signature[1]
        for output, got in signatures[name](**{argument: tensor}).items():
            is_text = got.dtype == tf.string
            found[f"{key}-{output}"] = got.numpy().astype("S") if is_text else got
    np.savez(folder + "/outputs.npz", **found)
"""


def build_x2p1d():
    # 8 x 16 learned tokens: from so many on vector attention is another one.
    return x2p1d.build_x2p1d(
        K,
        num_frames=T,
        module="token_learner",
        module_blocks=(0,),
        num_tokens=16,
        stage_depths=(1, 1, 1, 1),
        stage_strides=(2, 1, 1, 2),
        width=0.1,
    )


SMALL = {"patch_px": 8, "hidden_size": 16, "num_heads": 2, "mlp_size": 24, "depth": 2}
TOKENS = {"image_px": PX, "insert_before_block": 1, "num_tokens": 3}


def build_vivit():
    return differences.build_on_differences(
        K,
        build_model=lambda count: vivit.build_vivit(
            count, num_frames=T, **SMALL, **TOKENS
        ),
    )


def build_vit():
    return vit.build_vit(K, **SMALL, **TOKENS, tokenizer="v1.0", head="gap")


def classifier(build_model, *, kind="softmax", merge="mean", **changes):
    model = build_model()
    contract.randomize(model)
    is_video = build_model is not build_vit
    clips = {"num_frames": T, "crop_px": PX, "short_side_px": 36, "num_classes": K}
    sampler = (
        views.Views(is_training=False, fps=FPS, **clips, **changes)
        if is_video
        else crops.Crops(is_training=False, crop="center", image_px=PX, resize_px=34)
    )
    return serving.Classifier(
        model,
        sampler=sampler,
        loss=losses.Loss(kind),
        merge=merge,
        trained=serving.Trained(
            dataset="toy",
            noun="videos" if is_video else "images",
            classes=CLASSES,
            frames={"fps": FPS, "short_side": 36} if is_video else {},
            coverage={"train": {"share": 1.0}},
        ),
    )


def build_bfloat16():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        return classifier(build_vit)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


CASES = {
    "x2p1d": lambda: classifier(build_x2p1d, kind="sigmoid", merge="max", num_crops=3),
    "vivit": lambda: classifier(build_vivit, num_clips=2, frame_stride=2),
    "vit": lambda: classifier(build_vit),
    "bfloat16": build_bfloat16,
}


def examples(is_video: bool, size: tuple[int, ...]):
    """Pixels uint8 [B, F, h, w, 3], or of images [B, h, w, 3], and the same encoded."""
    count, length, height, width = size
    rng = np.random.default_rng(sum(size))
    shape = (count, *[length] * is_video)
    coarse = rng.integers(0, 256, [*shape, height // 4, width // 4, 3], np.uint8)
    pixels = coarse.repeat(4, axis=-3).repeat(4, axis=-2)  # JPEG likes flat ones
    encode = shards.jpeg if is_video else lambda p: tf.io.encode_png(p).numpy()
    flat = pixels.reshape([-1, *pixels.shape[-3:]])
    files = np.array([encode(one) for one in flat], object).reshape(shape)
    return pixels, files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of each case the classifier, and what a process without tl_tf found."""
    folder = tmp_path_factory.mktemp("exported")
    cases = {}
    for name, build in CASES.items():
        served = cases[name] = build()
        export.save(served, folder / name)
        inputs = {}
        for batch, size in BATCHES.items():
            pixels, files = examples(served.is_video, size)
            inputs[f"serving_default-{batch}"] = inputs[f"features-{batch}"] = pixels
            coded = tf.io.encode_base64(tf.constant(files)).numpy().astype("S")
            inputs[f"encoded-{batch}"] = coded
        np.savez(folder / name / "inputs.npz", **inputs)
    subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            LOAD_AND_RUN,
            *map(str, map(folder.joinpath, CASES)),
        ],
        cwd=folder,
        check=True,
        timeout=240,
    )
    return {
        name: (served, dict(np.load(folder / name / "outputs.npz")), folder / name)
        for name, served in cases.items()
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_a_process_without_this_code_gets_the_models_outputs(case, batch, exported):
    served, found, _ = exported[case]
    pixels, files = examples(served.is_video, BATCHES[batch])
    tolerance = {"rtol": 2e-5, "atol": 1e-6}
    if case == "bfloat16":  # of 8 bits
        tolerance = {"rtol": 2e-2, "atol": 2e-3}
    # Eagerly, by the definition: nothing that was traced for the export.
    with vector_attention.implemented(served.model, "naive"):
        taken = tf.stack([served.views_of(tf.constant(one)) for one in pixels])
        by_view, features = (found.numpy() for found in served.view_outputs(taken))
        decoded = tf.stack([served.views_of(tf.constant(one)) for one in files])
        of_files = served.merged(served.view_scores(decoded)).numpy()
    scores, features = served.merged(by_view).numpy(), features.mean(axis=1)
    assert scores.shape == (len(pixels), K) and scores.std(axis=1).min() > 1e-3
    for name, want in (
        ("serving_default", scores),
        ("encoded", of_files),
    ):
        got = found[f"{name}-{batch}-probabilities"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, **tolerance, err_msg=name)
        labels = found[f"{name}-{batch}-labels"]
        assert [label.decode() for label in labels] == CLASSES
    got = found[f"features-{batch}-features"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, features, **tolerance)


def test_a_graph_wants_no_compiler(exported):
    """A server without XLA could not run what is marked so."""
    *_, folder = exported["x2p1d"]
    assert b"MustCompile" not in (folder / "saved_model.pb").read_bytes()


def test_features_are_what_the_classifying_layer_reads(exported):
    served, found, _ = exported["x2p1d"]
    assert found["features-three-features"].shape == (3, 2048)
    served, found, _ = exported["vit"]
    # One view an image: its features give its logits.
    logits = served.model.classifier(found["features-three-features"])
    np.testing.assert_allclose(
        tf.nn.softmax(logits), found["serving_default-three-probabilities"], rtol=1e-4
    )


@pytest.mark.parametrize(
    "case, at, before, after",
    [
        ("x2p1d", "stage_4/block_0", 8 * 4 * 4, 8 * 16),
        ("vivit", "block_1", 4 * 4 * 4, 4 * 3),
        ("vit", "block_1", 16, 3),
    ],
)
def test_tokens_are_counted_around_token_learner(case, at, before, after, exported):
    served, *_ = exported[case]
    view = [1, *export.view_shape(served)[1:]]
    found = model_card.token_counts(cost.count(served.model, view).endpoints)
    assert found == [{"at": at, "before": before, "after": after}]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A trained run and its export, made over what lay there."""
    gin.clear_config()
    model_dir = tmp_path_factory.mktemp("run")
    tiny.load(RECIPE, *QUICKLY)
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=tiny_data, tpu=None)
    (model_dir / "export").mkdir()
    (model_dir / "export" / "model_card.json").write_text("{}")  # an earlier one
    (model_dir / "export" / "stale").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stdout__", io.StringIO())  # where report.say prints
        experiment.run("export", model_dir=model_dir, data_dir=tiny_data, tpu=None)
        (model_dir / "printed.txt").write_text(sys.__stdout__.getvalue())
    return model_dir


@pytest.fixture(scope="module")
def found_by_use(run):
    """What the Python that is printed finds, as it is printed."""
    printed = (run / "printed.txt").read_text()
    code = printed.split("With TensorFlow alone:\n")[1].split("As a service")[0]
    pixels, _ = examples(True, BATCHES["three"])
    names = {"tf": tf, "frames": pixels}
    exec(textwrap.dedent(code), names)
    return names


def test_the_python_that_is_printed_runs(run, found_by_use):
    assert found_by_use["found"]["probabilities"].shape == (3, len(shards.CLASSES))
    assert "one view, [1, 4, 32, 32, 3]" in (run / "printed.txt").read_text()


def frames_of_test_videos(data_dir) -> dict[str, tf.Tensor]:
    info = records.DatasetInfo.load(data_dir, "toy")
    paths = [str(path) for path in info.shard_paths("test")]
    videos = [records.parse(raw) for raw in tf.data.TFRecordDataset(paths)]
    return {video["video_id"].numpy().decode(): video["frames"] for video in videos}


def test_a_record_gets_the_score_of_the_evaluation(run, found_by_use, tiny_data):
    encoded = found_by_use["model"].signatures["encoded"]
    frames = frames_of_test_videos(tiny_data)
    with np.load(run / "results" / "test-2.scores.npz") as stored:
        wanted = stored["view_scores"].mean(axis=1)  # the recipe's merge
        assert wanted.std(axis=0).max() > 1e-3  # or any scores would do
        assert sorted(frames) == sorted(stored["ids"])
        for video_id, want in zip(stored["ids"], wanted, strict=True):
            got = encoded(frames=frames[video_id][tf.newaxis])["probabilities"][0]
            np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_tflite_file_gives_the_models_probabilities(run, found_by_use, tiny_data):
    folder = run / "export"
    card = json.loads((folder / "model_card.json").read_text())
    assert card["tflite"]["difference"] < 1e-5
    interpreter = tf.lite.Interpreter(model_path=str(folder / "model.tflite"))
    score = interpreter.get_signature_runner()
    frames = next(iter(frames_of_test_videos(tiny_data).values()))
    # The very views: those that the SavedModel takes, by the card's numbers.
    sampler = views.Views(is_training=False, fps=4, num_classes=K, **card["views"])
    by_view = [
        score(pixels=view[np.newaxis])["probabilities"]
        for view in sampler.views_of(frames).numpy()
    ]
    encoded = found_by_use["model"].signatures["encoded"]
    wanted = encoded(frames=frames[tf.newaxis])["probabilities"].numpy()
    np.testing.assert_allclose(np.mean(by_view, axis=0), wanted, atol=1e-5)


def test_the_card_says_what_was_trained_and_how_well(run):
    folder = run / "export"
    assert not (folder / "stale").exists()
    assert not list(run.glob(".export*"))
    card = json.loads((folder / "model_card.json").read_text())
    result = json.loads((run / "results" / "test-2.json").read_text())
    assert card["results"][0]["metrics"] == result["metrics"]
    assert card["results"][0]["is_of_these_views"]
    assert card["recipe"]["gin_files"] == [RECIPE]
    assert card["recipe"]["checksum"] == result["config_checksum"]
    assert card["weights"] == {"from": str(run / "ckpt-2"), "step": 2}
    assert card["coverage"].keys() == {"train", "test"}
    assert card["cost"]["gflops_per_view"] == result["cost"]["gflops_per_view"]
    files = {path for path in folder.rglob("*") if path.is_file()}
    cards = {folder / "model_card.json", folder / "model_card.md"}
    assert {folder / name for name in card["files"]} == files - cards
    for name, facts in card["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_of_images_other_things_are_printed():
    pixels = {"images": "uint8 [B, h, w, 3]"}
    card = {
        "model": "vit",
        "frames": {},
        "files": {"saved_model.pb": {"bytes": 2_500_000}},
        "tflite": {"file": None, "because": "export.tflite is False"},
        "signatures": {"serving_default": {"inputs": pixels}},
        "weights": {"from": "weights.npz", "step": 0},
        "recipe": {"gin_files": ["gin/my_vit.gin"]},
    }
    printed = export.summary(card, Path("/exports/vit"))
    assert "SavedModel    2.5 MB: serving_default" in printed
    assert "TFLite        none: export.tflite is False" in printed
    assert "(images=images)  # uint8 [B, h, w, 3]\n" in printed
    assert "-v /exports/vit:/models/my_vit/1" in printed
    assert """{"images": [{"b64": "..."}]}""" in printed


def test_another_folder_is_not_replaced(tmp_path, tiny_data):
    (tmp_path / "thesis.tex").touch()
    tiny.load(tiny.QUICKSTART)
    with pytest.raises(ValueError, match="something else than an export"):
        experiment.run(
            "export",
            model_dir=tmp_path,
            data_dir=tiny_data,
            tpu=None,
            output_dir=tmp_path,
        )
    assert (tmp_path / "thesis.tex").exists()


def test_a_large_model_gets_no_tflite_file_unasked(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TFLITE_PARAMETERS", 1000)
    found = export.write_tflite(exported["vit"][0], tmp_path / "a", is_wanted=None)
    assert found["file"] is None
    assert found["because"].startswith("the model has 0M parameters")


def converter_that(does: str, folder: Path) -> str:
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    "does, message",
    [
        ("kill -SEGV $$", "the converter crashed \\(SIGSEGV\\)"),
        ("echo oh no >&2; exit 3", "the converter ended with status 3: oh no"),
        ("exec sleep 60", "the converter took more than 0 s"),
        ('echo \'tflite: {"error": "the converter failed (X)"}\'', r"failed \(X\)"),
        (
            'touch "$4"; echo \'tflite: {"difference": NaN}\'',
            "its probabilities differ from the model's by nan",
        ),
    ],
)
def test_a_converter_that_fails_is_a_sentence(does, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", converter_that(does, tmp_path))
    if "sleep" in does:
        monkeypatch.setattr(tflite, "LIMIT_SECONDS", 0.1)
    with pytest.raises(tflite.ConversionError, match=message):
        tflite.convert(tmp_path, tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_a_wanted_tflite_file_that_cannot_be_is_an_error(
    exported, tmp_path, monkeypatch
):
    script = converter_that("kill -SEGV $$", tmp_path)
    monkeypatch.setattr(sys, "executable", script)
    served = exported["vit"][0]
    with pytest.raises(
        ValueError, match="there can be no TFLite file: the converter cr"
    ):
        export.write_tflite(served, tmp_path / "a", is_wanted=True)
    found = export.write_tflite(served, tmp_path / "a", is_wanted=None)
    assert found == {"file": None, "because": "the converter crashed (SIGSEGV)"}


def test_bfloat16_is_not_for_tflite(exported, tmp_path):
    served, *_ = exported["bfloat16"]
    found = export.write_tflite(served, tmp_path / "a", is_wanted=None)
    assert found["because"].startswith("TFLite does not compute in bfloat16; it can")


class Decomposed(tf.Module):
    """Of operations that TFLite has not."""

    @tf.function(input_signature=[tf.TensorSpec([2, 2], tf.uint8)], autograph=False)
    def serve(self, pixels):
        return {"y": tf.linalg.inv(tf.cast(pixels, tf.float32))}


@pytest.mark.slow
def test_operations_that_tflite_has_not_are_named(tmp_path):
    module = Decomposed()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    with pytest.raises(tflite.ConversionError, match="TensorFlow's MatrixInverse$"):
        tflite.convert(tmp_path, tmp_path / "a.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["x2p1d", "vit"])
def test_models_become_tflite_files(case, exported, tmp_path):
    served = exported[case][0]
    found = export.write_tflite(served, tmp_path / "a.tflite", is_wanted=True)
    assert found["difference"] < 1e-5


@pytest.mark.slow
def test_weights_of_a_file_are_exported_and_score_image_files(tiny_data, tmp_path):
    def run_mode(mode, *bindings, name):
        gin.clear_config()
        tiny.load("gin/cifar10_vit_tl.gin", "LEARNING_RATE = 0.1", *bindings)
        folder = tmp_path / name
        experiment.run(mode, model_dir=folder, data_dir=tiny_data, tpu=None)

    run_mode("train_and_eval", name="trained")
    run_mode("save_npz", name="trained")
    weights = str(tmp_path / "trained" / "weights-2.npz")
    path = f"warm_start.path = '{weights}'"
    run_mode("export", path, "export.tflite = False", name="released")
    folder = tmp_path / "released" / "export"
    card = json.loads((folder / "model_card.json").read_text())
    assert card["weights"] == {"from": weights, "step": 0}
    assert card["tflite"] == {"file": None, "because": "export.tflite is False"}
    encoded = tf.saved_model.load(str(folder)).signatures["encoded"]
    files = sorted((tiny_data / "tiny_images" / "test").glob("*/*.jpg"))
    images = tf.constant([file.read_bytes() for file in files])
    found = encoded(images=images)["probabilities"].numpy()
    with np.load(tmp_path / "trained" / "results" / "test-2.scores.npz") as stored:
        wanted = stored["view_scores"][np.argsort(stored["ids"]), 0]
    assert wanted.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
