import io
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from data import build
from tests import tiny
from tests.data import videos
from tl_tf import (
    config,
    experiment,
    export,
    losses,
    media,
    predict,
    scorers,
    scores,
    serving,
)
from tl_tf.inputs import crops, image, views

RECIPE, IMAGE_RECIPE = "gin/folder_x21d_tl.gin", "gin/cifar10_vit_tl.gin"
FPS, SHORT_SIDE = 12, 40
LENGTHS = {"a/0": 30, "a/1": 4, "b/0": 71, "b/1": 48}  # test videos; frames at 24 fps
BINDINGS = ("DATASET = 'mine'", f"FPS = {FPS}", "EVAL_CROPS = 3", "NUM_CLASSES = 2")


class Brightness(tf_keras.Model):
    """Takes dark clips and images for "dark" and bright ones for "bright"."""

    def call(self, x, training=False, seed=None):
        level = tf.reduce_mean(x, axis=[*range(1, x.shape.rank)])  # [B], -1..1
        maps = tf.reduce_mean(x, axis=-1, keepdims=True)  # [B, (T,) crop, crop, 1]
        logits = tf.stack([-3 * level, 3 * level], axis=-1)
        return logits, {"block_0/token_maps": maps, "pre_logits": logits}


def classifier(sampler, **trained) -> serving.Classifier:
    return serving.Classifier(
        Brightness(),
        sampler=sampler,
        loss=losses.Loss("softmax"),
        merge="mean",
        trained=serving.Trained(
            dataset="toy", classes=["dark", "bright"], coverage={}, **trained
        ),
    )


@pytest.fixture(scope="module")
def video_classifier() -> serving.Classifier:
    """At 6 fps; a clip spans 5 frames."""
    sampler = views.Views(
        is_training=False,
        num_frames=3,
        frame_stride=2,
        crop_px=8,
        short_side_px=10,
        num_clips=2,
        fps=6.0,
        num_classes=2,
    )
    frames = {"fps": 6.0, "short_side": 16}
    return classifier(sampler, noun="videos", frames=frames)


@pytest.fixture(scope="module")
def scorer(video_classifier) -> scorers.CheckpointScorer:
    return scorers.CheckpointScorer(video_classifier, step=0)


@pytest.fixture(scope="module")
def image_classifier() -> serving.Classifier:
    sampler = crops.Crops(is_training=False, crop="center", image_px=8, resize_px=10)
    return classifier(sampler, noun="images", frames={})


def write_levels(path: Path, *counts_and_levels: tuple[int, int]) -> Path:
    """A video at 24 fps that has a grey level for so many frames, then another."""
    pictures = [
        np.full((36, 48), level, np.uint8)
        for count, level in counts_and_levels
        for _ in range(count)
    ]
    return videos.write_video(path, pictures, encoder={"g": "12"})


def softmax(level: float) -> list[float]:
    """What Brightness gives a grey level: by hand."""
    bright = 1 / (1 + np.exp(-6 * (level / 127.5 - 1)))
    return [1 - bright, bright]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / predict.FILE).open()]


def by_class(line: dict) -> dict[str, float]:
    return dict(zip(line["labels"], line["scores"], strict=True))


def predict_files(paths, scorer, folder, *, does_render=False, **cut) -> list[dict]:
    cut = predict.Cut.of_seconds(scorer, **cut)
    predict.predict_files(paths, scorer, cut, folder, top_k=2, does_render=does_render)
    return lines_of(folder)


def test_a_long_video_gets_a_timeline(scorer, tmp_path, capfd):
    path = write_levels(tmp_path / "v.mp4", (48, 40), (96, 200))
    (line,) = predict_files([path], scorer, tmp_path)
    assert (line["file"], line["seconds"], line["scored"]) == (str(path), 6, "whole")
    # Two clips, from the start and to the end, one dark and one bright.
    mean = np.mean([softmax(40), softmax(200)], axis=0)
    assert by_class(line) == pytest.approx(dict(dark=mean[0], bright=mean[1]), abs=0.01)
    starts = [round(one["start"] * 6) for one in line["segments"]]
    assert starts == [*range(0, 31, 2), 31]  # 36 frames
    for one in line["segments"]:
        assert round((one["end"] - one["start"]) * 6) == 5
        if one["end"] <= 2 or one["start"] >= 2:
            wanted = "dark" if one["end"] <= 2 else "bright"
            assert one["labels"][0] == wanted
            assert one["scores"][0] == pytest.approx(max(softmax(40)), abs=0.05)
    screen = capfd.readouterr().out
    first, second = re.findall(r"^ +(\d\.\d) - +(\d\.\d)  (\w+) 0\.9\d$", screen, re.M)
    assert (first[0], second[1]) == ("0.0", "6.0")
    assert first[1] == second[0] and float(second[0]) == pytest.approx(2, abs=0.3)
    assert (first[2], second[2]) == ("dark", "bright")
    assert f"  -> {tmp_path / 'v.timeline.png'}\n" in screen
    assert np.asarray(Image.open(tmp_path / "v.timeline.png")).std() > 10


def test_a_video_too_long_to_hold_gets_the_merged_scores_of_segments(scorer, tmp_path):
    path = write_levels(tmp_path / "v.mp4", (48, 40), (96, 200))
    (line,) = predict_files(
        [path],
        scorer,
        tmp_path,
        segment_seconds=2.0,
        stride_seconds=1.5,
        whole_seconds=5.9,
    )
    assert line["scored"] == "segments"
    ends = [(one["start"], one["end"]) for one in line["segments"]]
    assert ends == [(0, 2), (1.5, 3.5), (3, 5), (4, 6)]
    bright = [by_class(one)["bright"] for one in line["segments"]]
    # A segment is scored as a video: of the second, 3 dark frames and 9 bright ones,
    # the two clips hold frames 0, 2, 4 and 7, 9, 11.
    second = [(80 + 200) / 3, 200]
    second = np.mean([softmax((40 + 40 + 200) / 3)[1], softmax(second[1])[1]])
    assert bright[0] == pytest.approx(softmax(40)[1], abs=0.01)
    assert bright[1] == pytest.approx(second, abs=0.02)
    assert by_class(line)["bright"] == pytest.approx(np.mean(bright), abs=1e-6)


def test_broken_files_are_named_and_the_rest_goes_on(scorer, tmp_path, capfd):
    videos.write_audio(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mkv").write_text("Not a video.\n" * 99)
    Image.new("RGB", (50, 60)).save(tmp_path / "picture.png")
    (tmp_path / "b").mkdir()
    write_levels(tmp_path / "b" / "whole.mp4", (9, 40))
    lines = predict_files(media.find([str(tmp_path)]), scorer, tmp_path)
    assert [Path(line["file"]).name for line in lines if "error" not in line] == [
        "whole.mp4"
    ]
    assert {
        Path(line["file"]).name: line["error"]["reason"]
        for line in lines
        if "error" in line
    } == {
        "sound.mp4": "no_video_stream",
        "empty.mp4": "empty_file",
        "text.mkv": "unreadable",
        "picture.png": "unreadable",
    }
    screen = capfd.readouterr().out
    assert "sound.mp4    left out: no_video_stream (streams: audio)\n" in screen
    assert "picture.png  left out: unreadable (an image, and the model wants" in screen
    assert re.search(
        r"^b/whole\.mp4 +0\.5 s  0\.98\d dark    0\.0\d\d br", screen, re.M
    )
    assert re.search(
        r"predict  1 of 5 files in [\d.]+ s, [\d.]+ files/s; 4 left out", screen
    )


def test_names_from_strangers_do_no_harm(scorer, tmp_path, capfd):
    name = os.fsdecode(b"\x1b[31m\xff.mp4")
    path = write_levels(tmp_path / "v.mp4", (96, 40)).rename(tmp_path / name)
    (line,) = predict_files([path], scorer, tmp_path)
    assert line["file"] == str(path)
    assert (tmp_path / "?[31m?.timeline.png").is_file()
    screen = capfd.readouterr().out
    assert "?[31m?.mp4  4.0 s" in screen and "\x1b" not in screen


def test_nothing_predicted_is_an_error(scorer, tmp_path):
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    paths[0].touch()
    with pytest.raises(
        ValueError, match=r"a\.mp4: could not be predicted: empty_file \("
    ):
        predict_files(paths[:1], scorer, tmp_path)
    with pytest.raises(ValueError, match="none of 2 files .* the last: missing"):
        predict_files(paths, scorer, tmp_path)
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_ctrl_c_keeps_what_was_done(scorer, tmp_path, monkeypatch, capfd, heard):
    paths = [write_levels(tmp_path / f"{i}.mp4", (9, 40)) for i in range(3)]
    predict_video = predict.predict_video

    def interrupted(path, *arguments, **options):
        if path == paths[2]:
            signal.raise_signal(signal.SIGINT)
        return predict_video(path, *arguments, **options)

    monkeypatch.setattr(predict, "predict_video", interrupted)
    with pytest.raises(SystemExit) as ended:
        predict_files(paths, scorer, tmp_path)
    assert ended.value.code == 130
    assert len((tmp_path / predict.PARTIAL).read_text().splitlines()) == 2
    assert "predict  interrupted; what was done  -> " in capfd.readouterr().out


def test_rendered_videos_play_at_the_speed_of_the_video(scorer, tmp_path):
    lengths = {"long": (60, 15), "short": (8, 2), "clips": (24, 6)}  # 24 and 6 fps
    paths = [
        write_levels(tmp_path / f"{name}.mp4", (count, 40))
        for name, (count, _) in lengths.items()
    ]
    predict_files(paths, scorer, tmp_path, does_render=True)
    for name, (_, frames) in lengths.items():
        drawn = tmp_path / f"{name}.predicted.mp4"
        video = media.read_video(drawn, fps=3, short_side=999)
        assert len(video.frames) == -(-frames // 2)  # each second frame, 3 a second
        assert min(video.height, video.width) > 90  # of 8 px, enlarged


def gradient(path: Path, *, orientation: int = 1) -> Path:
    """An image, 40 x 24 px as it is stored, bright to the right."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    row = np.linspace(20, 240, 40).astype(np.uint8)
    Image.fromarray(np.tile(row, (24, 1))).convert("RGB").save(path, exif=exif)
    return path


def test_images_are_predicted_and_drawn(image_classifier, tmp_path, capfd):
    scorer = scorers.CheckpointScorer(image_classifier, step=0)
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / "x.png", tmp_path / "x.jpg"]
    for path, level in zip(paths, (40, 200), strict=True):
        Image.new("RGB", (30, 20), (level,) * 3).save(path)
    write_levels(tmp_path / "v.mp4", (2, 40))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.jpg")
    os.truncate(tmp_path / "half.jpg", 2000)
    paths += [tmp_path / "v.mp4", tmp_path / "half.jpg"]
    predict.predict_files(paths, scorer, None, tmp_path, top_k=1, does_render=True)
    dark, bright, video, half = lines_of(tmp_path)
    assert (dark["labels"], bright["labels"]) == (["dark"], ["bright"])
    assert bright["scores"] == [pytest.approx(softmax(200)[1], abs=0.01)]
    assert "seconds" not in dark
    assert video["error"]["detail"].startswith("a video, and the model wants images")
    assert half["error"] == {
        "reason": "damaged",
        "detail": "its pixels cannot be decoded",
    }
    assert re.search(r"^a/x\.png +0\.9\d\d dark    0\.0", capfd.readouterr().out, re.M)
    for name in ("x", "x-2"):
        assert min(Image.open(tmp_path / f"{name}.predicted.png").size) > 90


def test_an_image_file_is_seen_as_evaluation_sees_it(image_classifier, tmp_path):
    folder = tmp_path / "set" / "train" / "cat"
    folder.mkdir(parents=True)
    gradient(folder / "a.jpg")
    gradient(folder / "b.jpg", orientation=6)
    gradient(folder / "c.png")
    noise = np.random.default_rng(0).integers(0, 256, (31, 24, 3), np.uint8)
    Image.fromarray(noise[..., 0]).save(folder / "d.jpeg")
    crop = {"crop": "center", "image_px": 8, "resize_px": 10}
    data = image.image_dataset(
        tmp_path,
        dataset="set",
        split="train",
        is_training=False,
        batch_size=4,
        seed=0,
        **crop,
    )
    (batch,) = data.batches
    want = image_classifier.classify(batch["pixels"]).numpy()
    scorer = scorers.CheckpointScorer(image_classifier, step=0)
    for name, one in zip(data.examples, want, strict=True):
        found = predict.predict_image(tmp_path / "set" / "train" / name, scorer)
        np.testing.assert_allclose(found.scores, one, atol=1e-6)
    assert np.ptp(want[:, 0]) > 0.01


@pytest.fixture
def heard():
    """Ctrl-C is, also where tests run in the background, and shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stdin(monkeypatch) -> io.FileIO:
    """What is written here is the standard input."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", 0) as pipe, os.fdopen(reader, "rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        yield pipe


def predict_stream(scorer, folder: Path) -> list[dict]:
    cut = predict.Cut.of_seconds(scorer)
    predict.predict_stream(scorer, cut, folder / predict.FILE, top_k=2)
    return lines_of(folder)


def test_a_stream_is_predicted_to_its_end(scorer, tmp_path, stdin, capfd):
    path = write_levels(tmp_path / "v.ts", (48, 40), (48, 200))

    def write():
        stdin.write(path.read_bytes())
        stdin.close()

    threading.Thread(target=write).start()
    *segments, last = predict_stream(scorer, tmp_path)
    (whole,) = predict_files([path], scorer, tmp_path, whole_seconds=0.1)
    for line, segment in zip(segments, whole["segments"], strict=True):
        assert line == {"file": "-"} | segment
    assert last["seconds"] == segments[-1]["end"] == whole["seconds"] == 4
    assert last["scored"] == "segments" and last["scores"] == whole["scores"]
    screen = capfd.readouterr().out
    assert re.search(
        r"^ +0\.0 - +0\.8 s  0\.98\d dark    0\.01\d bright$", screen, re.M
    )
    assert f"predict  4.0 s; {len(segments)} segments, mean: 0." in screen


def test_ctrl_c_ends_a_stream(scorer, tmp_path, stdin, capfd, heard):
    path = write_levels(tmp_path / "v.ts", (96, 40))
    lines = tmp_path / predict.FILE

    def interrupt():
        stdin.write(path.read_bytes())  # and no end
        while not lines.is_file() or not lines.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    *segments, last = predict_stream(scorer, tmp_path)
    thread.join()
    assert segments and last["seconds"] == segments[-1]["end"]
    assert f"{len(segments)} segments, mean: 0.98" in capfd.readouterr().out


def test_a_stream_without_a_frame_is_an_error(scorer, tmp_path, stdin):
    stdin.close()
    with pytest.raises(ValueError, match="--input=-: nothing could be predicted: unre"):
        predict_stream(scorer, tmp_path)


class Frame(bytes):
    """Counts how many of it there are."""

    alive = most = 0

    def __init__(self, _):
        Frame.alive += 1
        Frame.most = max(Frame.most, Frame.alive)

    def __del__(self):
        Frame.alive -= 1


@pytest.mark.parametrize("whole, most", [(0, 9), (50, 54)])
def test_frames_of_a_long_video_are_never_all_held(
    scorer, tmp_path, monkeypatch, whole, most
):
    path = write_levels(tmp_path / "v.mp4", (400, 40))  # 100 frames at 6 fps
    stream_video = media.stream_video

    def counted(*arguments, **options):
        for seconds, jpeg in stream_video(*arguments, **options):
            yield seconds, Frame(jpeg)

    monkeypatch.setattr(media, "stream_video", counted)
    Frame.alive = Frame.most = 0
    cut = predict.Cut(fps=6.0, segment=5, stride=4, whole=whole)
    found = predict.predict_video(path, scorer, cut)
    assert len(found.segments) == 25 and not found.is_whole
    assert Frame.most <= most and Frame.alive == 0


@pytest.mark.parametrize(
    "count, want",
    [
        (3, [(0, 3)]),
        (5, [(0, 5)]),
        (6, [(0, 5), (1, 5)]),
        (9, [(0, 5), (2, 5), (4, 5)]),
        (10, [(0, 5), (2, 5), (4, 5), (5, 5)]),
        (0, []),
    ],
)
def test_windows_reach_the_end(count, want):
    found = list(predict.windows([bytes([i]) for i in range(count)], 5, 2))
    assert [(first, len(files)) for first, files in found] == want
    for first, files in found:
        assert files == [bytes([first + i]) for i in range(len(files))]


def run(
    mode: str, model_dir: Path, data_dir: Path, *bindings, recipe=RECIPE, **options
):
    gin.clear_config()
    tiny.load(recipe, *(BINDINGS if recipe == RECIPE else ()), *bindings)
    options["inputs"] = tuple(str(one) for one in options.get("inputs", ()))
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None, **options)


def evaluated(model_dir: Path, *, merge: str) -> dict[str, dict[str, float]]:
    """What evaluation stored: scores by example and class."""
    stored = scores.ViewScores.load(model_dir / "results" / "test-2.scores.npz")
    merged = scores.MERGES[merge](stored.view_scores, axis=1)
    return {
        name: dict(zip(stored.classes.tolist(), row, strict=True))
        for name, row in zip(stored.ids.tolist(), merged, strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos in class folders, and a model of two steps on a data set of them."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(3)
    train = {f"{name}/{i}": 20 for name in "ab" for i in (7, 8)}
    for split, lengths in (("train", train), ("test", LENGTHS)):
        for name, count in lengths.items():
            path = folder / "videos" / split / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            texture = rng.integers(0, 256, (12, 40, 3), np.uint8)
            texture = texture.repeat(4, axis=0).repeat(4, axis=1)
            pictures = [texture[:, i : i + 64] for i in range(count)]
            videos.write_video(path, pictures)
    build.build(
        "folder",
        folder / "data",
        fps=FPS,
        short_side=SHORT_SIDE,
        num_shards=1,
        num_workers=1,
        name="mine",
        videos_dir=folder / "videos",
    )
    run("train_and_eval", folder / "run", folder / "data")
    return folder


def test_a_test_video_gets_the_score_of_its_evaluation(folder):
    root, model_dir = folder / "videos" / "test", folder / "run"
    before = (model_dir / "operative_config.gin").read_text()
    run("predict", model_dir, Path("nowhere"), inputs=[root])
    lines = lines_of(model_dir / "predictions")
    want = evaluated(model_dir, merge="mean")
    assert len(lines) == len(want) == len(LENGTHS)
    for line in lines:
        name = Path(line["file"]).relative_to(root).with_suffix("").as_posix()
        assert by_class(line) == pytest.approx(want[name.replace("/", "__")], abs=1e-6)
        assert line["scores"] == sorted(line["scores"], reverse=True)
        assert line["scored"] == "whole"
        assert line["seconds"] == pytest.approx(-(-LENGTHS[name] // 2) / FPS)
    spread = np.ptp([by_class(line)["a"] for line in lines])
    assert spread > 1e-4  # or any video would do for any other
    assert (model_dir / "operative_config.gin").read_text() == before


@pytest.fixture(scope="module")
def images(tiny_data, tmp_path_factory) -> Path:
    """The run of a model of images."""
    model_dir = tmp_path_factory.mktemp("images")
    run("train_and_eval", model_dir, tiny_data, recipe=IMAGE_RECIPE)
    return model_dir


@pytest.mark.slow
def test_a_test_image_gets_the_score_of_its_evaluation(images, tiny_data):
    root = tiny_data / "tiny_images" / "test"
    run("predict", images, Path("nowhere"), inputs=[root], recipe=IMAGE_RECIPE)
    lines = lines_of(images / "predictions")
    want = evaluated(images, merge="max")
    assert len(lines) == len(want) == 6
    for line in lines:
        name = Path(line["file"]).relative_to(root).as_posix()
        assert by_class(line) == pytest.approx(want[name], abs=1e-6)


def exported(classifier: serving.Classifier, folder: Path) -> scorers.ExportedScorer:
    """What a SavedModel of the classifier gives; its card has what is read of it."""
    export.save(classifier, folder)
    trained = classifier.trained
    card = {
        "model": "brightness",
        "noun": trained.noun,
        "classes": trained.classes,
        "merge": classifier.merge,
        "frames": trained.frames,
        "views": {"num_frames": 3, "frame_stride": 2},
    }
    (folder / scorers.CARD).write_text(json.dumps(card))
    return scorers.ExportedScorer(folder)


def test_an_exported_model_predicts_the_same(
    video_classifier, image_classifier, scorer, tmp_path
):
    path = write_levels(tmp_path / "v.mp4", (48, 40), (96, 200))
    lines = [
        predict_files([path], one, tmp_path)[0]
        for one in (scorer, exported(video_classifier, tmp_path / "videos"))
    ]
    for line, want in zip(*(one.pop("segments") for one in lines), strict=True):
        assert line["scores"] == pytest.approx(want["scores"], abs=1e-6)
        assert line["start"] == want["start"]
    assert by_class(lines[0]) == pytest.approx(by_class(lines[1]), abs=1e-6)
    both = (
        scorers.CheckpointScorer(image_classifier, step=0),
        exported(image_classifier, tmp_path / "images"),
    )
    # Turned, the centre of the image is another part of the gradient.
    found = {
        name: [predict.predict_image(path, one).scores for one in both]
        for name, path in (
            ("png", gradient(tmp_path / "a.png")),
            ("jpg", gradient(tmp_path / "b.jpg", orientation=6)),
        )
    }
    for mine, other in found.values():
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.slow
def test_an_exported_recipe_predicts_the_same(folder, tmp_path):
    files, model_dir = [folder / "videos" / "test" / "b"], folder / "run"
    without = "export.tflite = False"
    run("export", model_dir, folder / "data", without, output_dir=tmp_path)
    run("predict", model_dir, folder / "data", inputs=files)
    gin.clear_config()
    config.load([], ["predict.top_k = 9"])
    options = {"inputs": tuple(map(str, files)), "saved_model": tmp_path}
    experiment.run(
        "predict", model_dir=tmp_path, data_dir=tmp_path, tpu=None, **options
    )
    found, want = (lines_of(d / "predictions") for d in (tmp_path, model_dir))
    for line, other in zip(found, want, strict=True):
        assert by_class(line) == pytest.approx(by_class(other), abs=1e-6)
    assert not (tmp_path / "config.gin").exists()


@pytest.mark.parametrize(
    "options, bindings, message",
    [
        ({"inputs": ["none.mp4"]}, (), r"--input=none\.mp4: no such file or folder"),
        ({"inputs": ["*.none"]}, (), "the pattern matches no file"),
        ({"inputs": ["-"], "render": True}, (), "--render wants files, and a recipe's"),
        (
            {"inputs": ["-"]},
            ("predict.top_k = 0",),
            "predict.top_k must be above 0, got 0",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, bindings, message):
    with pytest.raises(ValueError, match=message):
        run("predict", tmp_path / "run", tmp_path, *bindings, **options)


def test_a_run_without_a_checkpoint_is_an_error_before_data_are_made(tmp_path):
    path = write_levels(tmp_path / "v.mp4", (2, 40))
    options = {"inputs": [path], "recipe": tiny.QUICKSTART}
    with pytest.raises(ValueError, match="there is no checkpoint to evaluate"):
        run("predict", tmp_path / "run", tmp_path / "data", **options)
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_a_stride_beyond_a_segment_is_an_error(scorer):
    message = r"predict.stride_seconds must be at most a segment, 0\.833333 s, got 2\."
    with pytest.raises(ValueError, match=message):
        predict.Cut.of_seconds(scorer, stride_seconds=2.0)


def test_a_stream_wants_a_model_of_videos(image_classifier, tmp_path):
    scorer = scorers.CheckpointScorer(image_classifier, step=0)
    with pytest.raises(ValueError, match="--input=-: wanted a model of videos, got"):
        predict.predict_stream(scorer, None, tmp_path / predict.FILE, top_k=2)


def test_what_is_no_export_is_one_sentence(tmp_path):
    message = "wanted a SavedModel and model_card.json, as --mode=export writes them"
    with pytest.raises(ValueError, match=message):
        scorers.ExportedScorer(tmp_path)
