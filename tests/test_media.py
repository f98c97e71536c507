import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from data import frames
from tests.data import videos
from tl_tf import media


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def jpeg(path, *, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (9, 6), (200, 30, 60)).save(path, "JPEG", exif=exif)
    return path


def test_a_folder_gives_its_videos_and_images_in_order(tmp_path):
    names = ["b/2.MP4", "b/1.mkv", "a.jpg", "c/d/e.png"]
    touch(tmp_path, *names, "b/notes.txt", ".hidden.mp4", ".cache/x.mp4")
    found = media.find([str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(names)


def test_patterns_files_and_folders_are_found_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a/2.mp4", "a/1.mp4", "a/b/3.mp4", "4.mp4", "clip[1].mp4")
    assert [str(path) for path in media.find(["4.mp4", "a/*.mp4", "a"])] == [
        "4.mp4",
        "a/1.mp4",
        "a/2.mp4",
        "a/b/3.mp4",
    ]
    assert [str(path) for path in media.find(["**/3.*"])] == ["a/b/3.mp4"]
    assert [str(path) for path in media.find(["clip[1].mp4"])] == ["clip[1].mp4"]
    assert media.find(["-"]) == [media.STDIN]


@pytest.mark.parametrize(
    "inputs, message",
    [
        (["no.mp4"], r"--input=no\.mp4: no such file or folder\."),
        (["*.mp4"], r"--input=\*\.mp4: the pattern matches no file\."),
        (["-", "no.mp4"], r"--input=-: the standard input stands alone, got -, no\.mp"),
        (["empty"], "--input=empty: wanted videos or images in this folder, got none"),
    ],
)
def test_what_names_no_file_is_an_error(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(ValueError, match=message):
        media.find(inputs)


def test_a_terminal_is_no_video(monkeypatch):
    ends = os.openpty()
    with os.fdopen(ends[0]), os.fdopen(ends[1]) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(ValueError, match="wanted a video from a pipe, .* a termin"):
            media.find(["-"])


def test_the_kind_is_told_by_suffix_or_content(tmp_path):
    path = jpeg(tmp_path / "picture")
    assert media.kind_of(path) == "image"
    video = videos.write_video(tmp_path / "v.mp4", videos.numbered(2))
    assert media.kind_of(video.rename(tmp_path / "film")) == "video"
    for name, kind in (("x.PNG", "image"), ("x.WebM", "video"), ("-", "video")):
        assert media.kind_of(tmp_path / name if name != "-" else media.STDIN) == kind


def test_an_image_comes_with_its_orientation(tmp_path):
    path = jpeg(tmp_path / "a.jpg", orientation=6)
    assert media.read_image(path) == (path.read_bytes(), 6)


@pytest.mark.parametrize(
    "content, reason, detail",
    [
        (None, "missing", "no such file"),
        (b"", "empty_file", "empty"),
        (b"Not an image.", "unreadable", "no image"),
    ],
)
def test_a_broken_image_says_why(tmp_path, content, reason, detail):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(media.VideoError) as error:
        media.read_image(path)
    assert (error.value.reason, error.value.detail) == (reason, detail)


def test_a_video_is_read_as_the_builders_do(tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(20))
    whole = media.read_video(path, fps=12, short_side=24)
    assert whole == frames.extract(path, fps=12, short_side=24, max_seconds=3600)
    stream = list(media.stream_video(path, fps=12, short_side=24))
    assert [jpeg for _, jpeg in stream] == whole.frames
    assert [seconds for seconds, _ in stream] == [k / 12 for k in range(10)]


def test_the_standard_input_is_streamed(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "v.ts", videos.numbered(20))
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(path.read_bytes())  # some kB, which a pipe holds
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))
    got = list(media.stream_video(media.STDIN, fps=12, short_side=24))
    assert got == list(media.stream_video(path, fps=12, short_side=24))


@pytest.mark.parametrize("height, width", [(36, 48), (35, 47)])
def test_what_is_written_plays_at_its_rate(tmp_path, height, width):
    grey = videos.numbered(12, height=height, width=width)
    pictures = (np.repeat(one[..., np.newaxis], 3, axis=-1) for one in grey)
    path = tmp_path / "a.mp4"
    media.write_mp4(path, pictures, fps=7.5)
    video = frames.extract(path, fps=7.5, short_side=256, max_seconds=9)
    assert videos.numbers(video) == list(range(12))
    assert (video.height, video.width) == (36, 48)  # even
    assert video.seconds == pytest.approx(12 / 7.5, abs=1e-3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it loads
    assert struct.unpack(">I4s", content[:8])[1] == b"ftyp"
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([], "a.mp4: wanted at least one picture, got none"),
        ([(8, 8, 3), (8, 6, 3)], r"wanted pictures of one size, \(8, 8, 3\), got \(8"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, shapes, message):
    pictures = [np.zeros(shape, np.uint8) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        media.write_mp4(tmp_path / "a.mp4", pictures, fps=12)
    assert not os.listdir(tmp_path)
