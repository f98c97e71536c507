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
from PIL import Image

from data import build
from tests import test_serving, tiny
from tests.data import videos
from tl_tf import config, experiment, media, predict, scorers, scores

RECIPE, IMAGE_RECIPE = "gin/folder_x21d_tl.gin", "gin/cifar10_vit_tl.gin"
FPS, SHORT_SIDE = 12, 40
SPAN = 5  # of 3 frames, each second one
LENGTHS = {"a/0": 30, "a/1": 4, "b/0": 71, "b/1": 48}  # test videos; frames at 24 fps
BINDINGS = ("DATASET = 'mine'", f"FPS = {FPS}", "EVAL_CROPS = 3", "NUM_CLASSES = 2")


def moving(count: int, seed: int) -> list[np.ndarray]:
    """Pictures of a texture that moves."""
    texture = np.random.default_rng(seed).integers(0, 256, (20, 60, 3), np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)
    return [texture[:48, i : i + 64] for i in range(count)]


def run(
    mode: str, model_dir: Path, data_dir: Path, *bindings, recipe=RECIPE, **options
):
    gin.clear_config()
    tiny.load(recipe, *(BINDINGS if recipe == RECIPE else ()), *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None, **options)


def predicted(model_dir: Path, *bindings, recipe=RECIPE, **options) -> list[dict]:
    """The lines of a prediction, the data set being nowhere."""
    bindings = ("predict.top_k = 9", *bindings)
    options["inputs"] = tuple(str(one) for one in options["inputs"])
    folder = options.get("output_dir") or model_dir / "predictions"
    run("predict", model_dir, Path("nowhere"), *bindings, recipe=recipe, **options)
    return [json.loads(line) for line in (folder / predict.FILE).open()]


def by_class(line: dict) -> dict[str, float]:
    return dict(zip(line["labels"], line["scores"], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos in class folders, a data set of them, and a model of two steps."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(3)
    for split, lengths in (
        ("train", {f"{c}/{i}": 20 for c in "ab" for i in (7, 8)}),
        ("test", LENGTHS),
    ):
        for name, count in lengths.items():
            path = folder / "videos" / split / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            videos.write_video(path, moving(count, int(rng.integers(99))))
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


@pytest.fixture(scope="module")
def images(tiny_data, tmp_path_factory) -> Path:
    """The run of a model of images."""
    model_dir = tmp_path_factory.mktemp("images")
    run("train_and_eval", model_dir, tiny_data, recipe=IMAGE_RECIPE)
    return model_dir


def evaluated(model_dir: Path, *, merge: str) -> dict[str, dict[str, float]]:
    """What evaluation stored: scores by example and class."""
    stored = scores.ViewScores.load(model_dir / "results" / "test-2.scores.npz")
    merged = scores.MERGES[merge](stored.view_scores, axis=1)
    return {
        name: dict(zip(stored.classes.tolist(), row, strict=True))
        for name, row in zip(stored.ids.tolist(), merged, strict=True)
    }


def test_a_test_video_gets_the_score_of_its_evaluation(folder, capfd):
    root = folder / "videos" / "test"
    lines = predicted(folder / "run", inputs=[root])
    want = evaluated(folder / "run", merge="mean")
    assert len(lines) == len(want) == len(LENGTHS)
    for line in lines:
        name = Path(line["file"]).relative_to(root).with_suffix("").as_posix()
        assert by_class(line) == pytest.approx(want[name], abs=1e-6)
        assert line["scores"] == sorted(line["scores"], reverse=True)
        assert line["scored"] == "whole"
        assert line["seconds"] == -(-LENGTHS[name] // 2) / FPS
    spread = np.ptp([by_class(line)["a"] for line in lines])
    assert spread > 1e-4  # or any video would do for any other
    screen = capfd.readouterr().out
    assert re.search(r"b/0\.mp4 +3\.0 s  0\.\d{3} [ab]  0\.\d{3} [ab]\n", screen)
    assert re.search(r"predict  4 of 4 files, [\d.]+ files/s  -> .*jsonl\n", screen)


def test_a_test_image_gets_the_score_of_its_evaluation(images, tiny_data):
    root = tiny_data / "tiny_images" / "test"
    lines = predicted(images, inputs=[root], recipe=IMAGE_RECIPE)
    want = evaluated(images, merge="max")
    assert len(lines) == len(want) == 6
    for line in lines:
        name = Path(line["file"]).relative_to(root).as_posix()
        assert by_class(line) == pytest.approx(want[name], abs=1e-6)
        assert "seconds" not in line


def test_a_long_video_gets_a_timeline(folder, tmp_path, capfd):
    path = folder / "videos" / "test" / "b" / "0.mp4"
    (line,) = predicted(folder / "run", inputs=[path], output_dir=tmp_path)
    starts = [one["start"] * FPS for one in line["segments"]]
    assert starts == pytest.approx([*range(0, 30, 2), 31])  # 36 frames, the last at 31
    assert {round((s["end"] - s["start"]) * FPS) for s in line["segments"]} == {SPAN}
    picture = np.asarray(Image.open(tmp_path / "0.timeline.png"))
    assert picture.ndim == 3 and picture.std() > 10
    screen = capfd.readouterr().out
    assert re.search(r"^ +0\.0 - +\d\.\d  [ab] 0\.\d\d", screen, re.M)
    assert sorted(os.listdir(tmp_path)) == ["0.timeline.png", predict.FILE]


def test_segments_are_scored_as_videos_of_their_length(folder, tmp_path):
    """And a video that is too long to be held by what its segments get."""
    path = folder / "videos" / "test" / "b" / "0.mp4"
    (line,) = predicted(
        folder / "run",
        "predict.segment_seconds = 1.0",
        "predict.stride_seconds = 0.75",
        "predict.whole_seconds = 1.5",
        inputs=[path],
        output_dir=tmp_path,
    )
    assert line["scored"] == "segments"
    assert [one["start"] for one in line["segments"]] == [0, 0.75, 1.5, 2.0]
    frames = media.read_video(path, fps=FPS, short_side=SHORT_SIDE).frames
    scorer = restored(folder)
    for one in line["segments"]:
        part = frames[round(one["start"] * FPS) : round(one["end"] * FPS)]
        assert len(part) == 12
        want = dict(zip("ab", scorer.score_video(part).tolist(), strict=True))
        assert by_class(one) == pytest.approx(want, abs=1e-6)
    mean = np.mean([by_class(one)["a"] for one in line["segments"]])
    assert by_class(line)["a"] == pytest.approx(mean, abs=1e-6)


def restored(folder: Path) -> scorers.CheckpointScorer:
    """The model of the fixture."""
    from tl_tf import session as sessions

    gin.clear_config()
    tiny.load(RECIPE, *BINDINGS)
    strategy = experiment.runtime.configure_runtime(None)
    session = sessions.Session("predict", folder / "run", Path("nowhere"), strategy)
    build_model = gin.query_parameter("%MODEL").scoped_configurable_fn
    return scorers.CheckpointScorer(*sessions.restore_classifier(session, build_model))


def test_broken_files_are_named_and_the_rest_goes_on(folder, tmp_path, capfd):
    videos.write_audio(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mkv").write_text("Not a video.\n" * 99)
    Image.new("RGB", (50, 60)).save(tmp_path / "picture.png")
    videos.write_video(tmp_path / "whole.mp4", moving(9, 1))
    lines = predicted(folder / "run", inputs=[tmp_path], output_dir=tmp_path / "out")
    errors = {
        Path(line["file"]).name: line["error"]["reason"]
        for line in lines
        if "error" in line
    }
    assert errors == {
        "sound.mp4": "no_video_stream",
        "empty.mp4": "empty_file",
        "text.mkv": "unreadable",
        "picture.png": "unreadable",
    }
    screen = capfd.readouterr().out
    assert "sound.mp4    left out: no_video_stream (streams: audio)\n" in screen
    assert "picture.png  left out: unreadable (an image, and the model wants" in screen
    assert re.search(r"predict  1 of 5 files, .*; 4 left out  -> ", screen)


def test_an_image_model_takes_no_video(images, tiny_data, tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", moving(2, 0))
    whole = tiny_data / "tiny_images" / "test" / "cat" / "0.jpg"
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:700])
    message = r"none of 1 files could be predicted; .*v\.mp4: unreadable \(a video, an"
    with pytest.raises(ValueError, match=message):
        predicted(images, inputs=[path], recipe=IMAGE_RECIPE)
    with pytest.raises(ValueError, match="none of 2 files .* the last: unreadable"):
        predicted(images, inputs=[tmp_path], recipe=IMAGE_RECIPE)
    lines = predicted(images, inputs=[tmp_path, whole], recipe=IMAGE_RECIPE)
    assert lines[0]["error"] == {
        "reason": "damaged",
        "detail": "its pixels cannot be decoded",
    }
    with pytest.raises(ValueError, match="--input=-: wanted a model of videos, got"):
        predicted(images, inputs=["-"], recipe=IMAGE_RECIPE)


def test_rendered_videos_play_at_the_speed_of_the_video(folder, tmp_path):
    root = folder / "videos" / "test"
    files = [root / "b" / "0.mp4", root / "a" / "1.mp4"]
    predicted(folder / "run", inputs=files, render=True, output_dir=tmp_path)
    for name, seconds in (("0", 36 / FPS), ("1", 2 / FPS)):
        video = media.read_video(
            tmp_path / f"{name}.predicted.mp4", fps=FPS / 2, short_side=999
        )
        assert len(video.frames) == round(seconds * FPS / 2)
        assert min(video.height, video.width) > 90  # of 32 px, enlarged


def test_rendered_images_are_pictures(images, tiny_data, tmp_path):
    path = tiny_data / "tiny_images" / "test" / "cat" / "0.jpg"
    predicted(
        images, inputs=[path], render=True, output_dir=tmp_path, recipe=IMAGE_RECIPE
    )
    picture = np.asarray(Image.open(tmp_path / "0.predicted.png"))
    assert min(picture.shape[:2]) > 90


@pytest.fixture
def stdin(monkeypatch) -> io.FileIO:
    """What is written here is the standard input."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", 0) as pipe, os.fdopen(reader, "rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        yield pipe


def transport_stream(folder: Path, tmp_path: Path) -> bytes:
    """A test video in a container that can be streamed."""
    path = tmp_path / "v.ts"
    return videos.write_video(path, moving(71, 5), encoder={"g": "6"}).read_bytes()


def test_a_stream_is_predicted_to_its_end(folder, tmp_path, stdin, capfd):
    content = transport_stream(folder, tmp_path)

    def write():
        stdin.write(content)
        stdin.close()

    threading.Thread(target=write).start()
    *segments, last = predicted(folder / "run", inputs=["-"], output_dir=tmp_path)
    assert len(segments) == 16
    assert last["seconds"] == segments[-1]["end"] == 3
    assert last["scored"] == "segments"
    (whole,) = predicted(
        folder / "run",
        "predict.whole_seconds = 0.1",
        inputs=[tmp_path / "v.ts"],
        output_dir=tmp_path / "file",
    )
    for line, segment in zip(segments, whole["segments"], strict=True):
        assert {"file": "-"} | segment == line
    assert by_class(last) == pytest.approx(by_class(whole), abs=1e-6)
    screen = capfd.readouterr().out
    assert re.search(r"^ +0\.0 - +0\.4 s  0\.\d{3} [ab]", screen, re.M)
    assert "predict  3.0 s; 16 segments, mean: 0." in screen


def test_ctrl_c_ends_a_stream(folder, tmp_path, stdin, capfd):
    content = transport_stream(folder, tmp_path)
    path = tmp_path / predict.FILE

    def interrupt():
        stdin.write(content)  # and no end
        while not path.is_file() or not path.read_text():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    *segments, last = predicted(folder / "run", inputs=["-"], output_dir=tmp_path)
    thread.join()
    assert segments and last["seconds"] == segments[-1]["end"]
    assert re.search(r"predict  \d\.\d s.*; \d+ segments, mean", capfd.readouterr().out)


def test_a_stream_without_a_frame_is_an_error(folder, tmp_path, stdin):
    stdin.close()
    with pytest.raises(ValueError, match="--input=-: nothing could be predicted: unre"):
        predicted(folder / "run", inputs=["-"], output_dir=tmp_path)


class Frame(bytes):
    """Counts how many of it there are."""

    alive = most = 0

    def __init__(self, _):
        Frame.alive += 1
        Frame.most = max(Frame.most, Frame.alive)

    def __del__(self):
        Frame.alive -= 1


@pytest.mark.parametrize("whole, most", [(0, 8), (50, 58)])
def test_frames_of_a_long_video_are_never_all_held(tmp_path, monkeypatch, whole, most):
    path = videos.write_video(tmp_path / "v.avi", moving(40, 0), codec="mjpeg")
    path = videos.repeat_packets(path, tmp_path / "long.avi", times=10)
    stream_video = media.stream_video

    def counted(*arguments, **options):
        for seconds, jpeg in stream_video(*arguments, **options):
            yield seconds, Frame(jpeg)

    monkeypatch.setattr(media, "stream_video", counted)
    Frame.alive = Frame.most = 0
    scorer = scorers.CheckpointScorer(test_serving.classifier(), step=0)
    cut = predict.Cut(fps=6.0, segment=5, stride=4, whole=whole)
    found = predict.predict_video(path, scorer, cut)
    assert len(found.segments) == 25 and not found.is_whole  # of 100 frames
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
    assert all(
        files == [bytes([first + i]) for i in range(len(files))]
        for first, files in found
    )


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
        (
            {"inputs": ["-"]},
            ("predict.stride_seconds = 2.0",),
            r"predict.stride_seconds must be at most a segment, 0\.416667 s, got 2\.",
        ),
    ],
)
def test_mistakes_are_one_sentence(folder, options, bindings, message):
    with pytest.raises(ValueError, match=message):
        predicted(folder / "run", *bindings, **options)


def test_what_is_no_export_is_one_sentence(tmp_path):
    message = "wanted a SavedModel and model_card.json, as --mode=export writes them"
    with pytest.raises(ValueError, match=message):
        scorers.ExportedScorer(tmp_path)


def test_an_exported_model_predicts_the_same(folder, images, tiny_data, tmp_path):
    image = tiny_data / "tiny_images" / "test" / "cat" / "0.jpg"
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(turned, exif=exif)
    for model_dir, recipe, inputs in (
        (folder / "run", RECIPE, [folder / "videos" / "test"]),
        (images, IMAGE_RECIPE, [image, turned]),
    ):
        export = tmp_path / model_dir.name
        bindings = ("export.tflite = False",)
        run("export", model_dir, tiny_data, *bindings, recipe=recipe, output_dir=export)
        gin.clear_config()
        config.load([], ["predict.top_k = 9"])
        experiment.run(
            "predict",
            model_dir=export,
            data_dir=tmp_path,
            tpu=None,
            inputs=tuple(map(str, inputs)),
            saved_model=export,
        )
        lines = (export / "predictions" / predict.FILE).open()
        want = predicted(model_dir, inputs=inputs, recipe=recipe)
        for line, other in zip(map(json.loads, lines), want, strict=True):
            assert by_class(line) == pytest.approx(by_class(other), abs=1e-6)
            assert not (export / "config.gin").exists()
