import io
import os
import shutil
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest

from data import frames, isolated
from tests.data import videos

needs_media = pytest.mark.skipif(
    not videos.MEDIA.is_dir(), reason="needs ../shared/media"
)


def extract(path, fps=12, short_side=256, max_seconds=100, **kwargs):
    return frames.extract(
        path, fps=fps, short_side=short_side, max_seconds=max_seconds, **kwargs
    )


def refusal(path, **kwargs) -> frames.VideoError:
    with pytest.raises(frames.VideoError) as error:
        extract(path, **kwargs)
    assert error.value.reason in frames.REASONS
    assert str(path) not in error.value.detail  # reports must not depend on the folder
    return error.value


# Frame k is the last one whose time stamp is at most k / 12 seconds.
@pytest.mark.parametrize(
    "suffix, fps, count, want",
    [
        ("mp4", 24, 11, [0, 2, 4, 6, 8, 10]),
        ("mp4", 30, 11, [0, 2, 5, 7, 10]),
        ("mp4", 10, 7, [0, 0, 1, 2, 3, 4, 5, 5, 6]),
        ("mp4", Fraction(30000, 1001), 11, [0, 2, 4, 7, 9]),
        ("mkv", 24, 11, [0, 2, 4, 6, 8, 10]),  # rounds time stamps to milliseconds
        ("avi", 24, 11, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_constant_rate(tmp_path, suffix, fps, count, want):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = videos.write_video(
        tmp_path / f"v.{suffix}", videos.numbered(count), fps=fps, codec=codec
    )
    assert videos.numbers(extract(path)) == want


def test_variable_rate_holds_each_frame_until_the_next(tmp_path):
    path = videos.write_video(
        tmp_path / "v.mp4",
        videos.numbered(5),
        milliseconds=[0, 10, 300, 320, 700],
        fps=1000,
    )
    # At 0, 83, 167, 250, 333, 417, 500, 583, 667 ms; the last frame comes after that.
    assert videos.numbers(extract(path))[:9] == [0, 1, 1, 1, 3, 3, 3, 3, 3]


def test_first_frame_is_time_zero_whatever_its_stamp(tmp_path):
    path = videos.write_video(
        tmp_path / "v.mkv",
        videos.numbered(4),
        milliseconds=[5000, 5083, 5167, 5250],
        fps=12,
    )
    assert videos.numbers(extract(path)) == [0, 1, 2, 3]


def test_start_and_end(tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(24))
    video = extract(path, start_seconds=0.25, end_seconds=0.5)
    assert video.seconds == 0.25
    assert videos.numbers(video) == [6, 8, 10]
    error = refusal(path, start_seconds=1.5)
    assert (error.reason, error.detail) == (
        "no_frames",
        "starts at 1.5 s, past its end at 1 s",
    )


def moving(count: int) -> list[np.ndarray]:
    """Pictures of a texture that moves: what refers to a wrong frame differs."""
    texture = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)
    return [texture[i % 60 : i % 60 + 96, i : i + 128] for i in range(count)]


@pytest.fixture
def seeks(monkeypatch) -> list[bool]:
    """Whether each file was decoded from a key frame, or from its start."""
    used, decode = [], frames._decode

    def spy(path, chosen, *, seeks):
        video = decode(path, chosen, seeks=seeks)
        used.append(seeks)
        return video

    monkeypatch.setattr(frames, "_decode", spy)
    return used


# B-frames that refer to both sides of a key frame, key frames far apart, no index.
@pytest.mark.parametrize(
    "name, codec, encoder, container, does_seek",
    [
        ("v.mp4", "libx264", {"g": "12", "bf": "3"}, {}, True),
        ("v.mp4", "libx264", {"g": "30", "x264-params": "open-gop=1"}, {}, True),
        ("v.mkv", "libx264", {"g": "30", "x264-params": "open-gop=1"}, {}, True),
        ("v.mp4", "libx264", {"g": "250", "bf": "8"}, {}, True),
        ("v.mkv", "libx264", {"g": "24", "bf": "3"}, {"live": "1"}, True),
        ("v.mp4", "libx264", {"g": "12"}, {"movflags": "frag_keyframe"}, True),
        ("v.mp4", "mpeg4", {"g": "12", "bf": "2"}, {}, True),
        ("v.webm", "libvpx", {"g": "24", "deadline": "realtime"}, {}, True),
        ("v.avi", "mpeg4", {"g": "12"}, {}, False),
    ],
)
def test_a_late_start_gives_the_frames_of_the_whole_video(
    tmp_path, seeks, name, codec, encoder, container, does_seek
):
    path = videos.write_video(
        tmp_path / name, moving(200), codec=codec, encoder=encoder, **container
    )
    whole = extract(path, fps=24).frames
    assert len(set(whole)) == len(whole) == 200
    for first, last in ((31, 40), (96, 120), (167, 200)):
        part = extract(
            path, fps=24, start_seconds=first / 24, end_seconds=last / 24
        ).frames
        assert part == whole[first:last]
    assert seeks == [False] + [does_seek] * 3


def test_a_late_start_without_key_frames_decodes_from_the_start(tmp_path, seeks):
    encoder = {"g": "24", "bf": "0", "x264-params": "intra-refresh=1"}
    path = videos.write_video(tmp_path / "v.mp4", moving(150), encoder=encoder)
    whole = extract(path, fps=24).frames
    assert extract(path, fps=24, start_seconds=4).frames == whole[96:]
    assert seeks == [False, False]


def test_a_late_start_counts_from_the_first_frame(tmp_path, seeks):
    times = [5000 + 37 * i + 11 * (i % 3) for i in range(150)]
    path = videos.write_video(
        tmp_path / "v.mkv",
        moving(150),
        milliseconds=times,
        fps=1000,
        encoder={"g": "20", "bf": "2"},
    )
    whole = extract(path).frames
    assert extract(path, start_seconds=4).frames == whole[48:]
    assert seeks == [False, True]


def test_damage_near_a_late_start_is_told_as_ever(tmp_path, seeks):
    path = videos.write_video(
        tmp_path / "v.mp4", moving(150), encoder={"g": "24", "bf": "0"}
    )
    videos.erase_packets(path, [4, 100, 101])
    whole = extract(path, fps=24)
    part = extract(path, fps=24, start_seconds=4.5)
    assert part.frames == whole.frames[108:]
    assert part.damaged == whole.damaged >= 3
    error = refusal(path, start_seconds=9)
    assert error.detail == "starts at 9 s, past its end at 6.25 s"


def test_one_frame_gives_one_frame(tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(1))
    assert videos.numbers(extract(path)) == [0]


@pytest.mark.parametrize(
    "height, width, want",
    [(36, 48, (24, 32)), (48, 36, (32, 24)), (36, 50, (24, 33)), (20, 28, (20, 28))],
)
def test_short_side_shrinks_and_never_grows(tmp_path, height, width, want):
    pictures = videos.numbered(2, height=height, width=width)
    video = extract(videos.write_video(tmp_path / "v.mp4", pictures), short_side=24)
    assert (video.height, video.width) == want
    assert videos.decode(video.frames[0]).shape == (*want, 3)


@pytest.mark.parametrize(
    "aspect, want",
    [(Fraction(16, 9), (36, 85)), (Fraction(1, 2), (36, 24)), (None, (36, 48))],
)
def test_pixels_become_square(tmp_path, aspect, want):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(2), aspect=aspect)
    video = extract(path)
    assert (video.height, video.width) == want


def _corners(picture: np.ndarray) -> list[bool]:
    """Brightness of the corners, clockwise from the top left."""
    h, w = picture.shape[0] // 4, picture.shape[1] // 4
    cells = picture[:h, :w], picture[:h, -w:], picture[-h:, -w:], picture[-h:, :w]
    return [bool(cell.mean() > 128) for cell in cells]


# set_display_rotation counts counter-clockwise and mirrors after turning.
@pytest.mark.parametrize(
    "rotation, hflip, corners, size",
    [
        (0, False, [1, 1, 0, 0], (36, 48)),
        (90, False, [1, 0, 0, 1], (48, 36)),
        (-90, False, [0, 1, 1, 0], (48, 36)),
        (180, False, [0, 0, 1, 1], (36, 48)),
    ],
)
def test_rotation(tmp_path, rotation, hflip, corners, size):
    picture = np.zeros((36, 48, 3), np.uint8)
    picture[:18] = 255  # the upper half
    path = videos.write_video(
        tmp_path / "v.mp4", [picture] * 2, rotation=rotation, hflip=hflip
    )
    video = extract(path)
    assert (video.height, video.width) == size
    assert _corners(videos.decode(video.frames[0])) == [bool(c) for c in corners]


def test_mirroring(tmp_path):
    picture = np.zeros((36, 48, 3), np.uint8)
    picture[:, :24] = 255  # the left half
    path = videos.write_video(tmp_path / "v.mp4", [picture] * 2, rotation=0, hflip=True)
    video = extract(path)
    assert _corners(videos.decode(video.frames[0])) == [False, True, True, False]


def test_colours_survive(tmp_path):
    picture = np.zeros((36, 48, 3), np.uint8)
    picture[:] = (200, 40, 90)
    path = videos.write_video(tmp_path / "v.mp4", [picture] * 2)
    pixels = videos.decode(extract(path).frames[0])
    np.testing.assert_allclose(pixels.mean((0, 1)), (200, 40, 90), atol=6)


def test_the_same_bytes_twice(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (9, 36, 48, 3), np.uint8)
    path = videos.write_video(tmp_path / "v.mp4", pictures)
    assert extract(path, short_side=24) == extract(path, short_side=24)


def test_missing_empty_and_text_files(tmp_path):
    assert refusal(tmp_path / "v.mp4").reason == "missing"
    (tmp_path / "v.mp4").touch()
    assert refusal(tmp_path / "v.mp4").reason == "empty_file"
    (tmp_path / "v.mp4").write_text("Not a video at all.\n" * 99)
    assert refusal(tmp_path / "v.mp4").reason == "unreadable"
    error = refusal(tmp_path)
    assert (error.reason, error.detail) == ("unreadable", "not a regular file")


def test_sound_alone(tmp_path):
    error = refusal(videos.write_audio(tmp_path / "v.mp4"))
    assert (error.reason, error.detail) == ("no_video_stream", "streams: audio")


def test_half_a_download(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (24, 36, 48, 3), np.uint8)
    whole = videos.write_video(tmp_path / "v.mp4", pictures)
    start = videos.write_video(tmp_path / "w.mp4", pictures, movflags="faststart")
    for path, reason in ((whole, "unreadable"), (start, "truncated")):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        assert refusal(path).reason == reason
    assert " s of 1.00 s decode" in refusal(start).detail


def test_damaged_packets(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (60, 36, 48, 3), np.uint8)
    path = videos.write_video(tmp_path / "v.mp4", pictures)
    videos.erase_packets(path, [30, 31])
    video = extract(path)
    assert (len(video.frames), video.damaged) == (30, 2)
    videos.erase_packets(path, range(20, 40))
    error = refusal(path)
    assert error.reason == "damaged"
    assert error.detail.startswith("20 of 6")


def test_encrypted(tmp_path):
    path = videos.write_video(
        tmp_path / "v.mp4",
        videos.numbered(5),
        encryption_scheme="cenc-aes-ctr",
        encryption_key="00112233445566778899aabbccddeeff",
        encryption_kid="112233445566778899aabbccddeeff00",
    )
    assert refusal(path).reason == "encrypted"


def test_long_videos_are_refused_by_what_decodes(tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(30))
    assert len(extract(path, max_seconds=1.25).frames) == 15
    error = refusal(path, max_seconds=1)
    assert error.reason == "too_large"
    assert error.detail == "longer than 1 s; raise --max_seconds"


def test_a_leap_in_time_does_not_fill_the_memory(tmp_path):
    path = videos.write_video(
        tmp_path / "v.mkv", videos.numbered(2), milliseconds=[0, 2**40], fps=24
    )
    assert refusal(path).reason == "too_large"


def test_large_pictures_are_refused(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(2))
    monkeypatch.setattr(frames, "MAX_SIDE_PX", 40)
    error = refusal(path)
    assert error.reason == "too_large"
    assert error.detail == "48x36; the limit is 40 pixels a side"


def test_large_results_are_refused(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(24))
    monkeypatch.setattr(frames, "MAX_VIDEO_BYTES", 3000)
    assert "lower --fps or --short_side" in refusal(path).detail


def test_slivers_are_refused(tmp_path):
    pictures = videos.numbered(2, height=18, width=300)
    error = refusal(videos.write_video(tmp_path / "v.mp4", pictures))
    assert error.reason == "too_large"
    assert "one side is more than 16 times the other: 300x18" in error.detail


def box(content: bytes, name: bytes) -> int:
    """Where the content of an MP4 box begins (ISO 14496-12)."""
    return content.index(name) + 4


def claim_a_billion_frames(content: bytearray) -> None:
    many = struct.pack(">I", 10**9)
    at = box(content, b"stsz")  # version, one size for all, their number
    content[at + 4 : at + 12] = struct.pack(">I", 1) + many
    at = box(content, b"stts")  # version, entries, frames of the first
    content[at + 8 : at + 12] = many


def claim_many_entries(content: bytearray) -> None:
    at = box(content, b"stsz")
    content[at + 8 : at + 12] = struct.pack(">I", 2**31 - 1)


def claim_a_long_box(content: bytearray) -> None:
    at = box(content, b"stbl")
    content[at - 8 : at - 4] = struct.pack(">I", 2**32 - 1)


def claim_65535_pixels(content: bytearray) -> None:
    at = box(content, b"avc1") + 24
    content[at : at + 4] = struct.pack(">HH", 65535, 65535)


@pytest.mark.parametrize(
    "claim",
    [claim_a_billion_frames, claim_many_entries, claim_a_long_box, claim_65535_pixels],
)
def test_what_an_mp4_claims_is_not_believed(tmp_path, claim):
    path = videos.write_video(tmp_path / "v.mp4", videos.numbered(5))
    content = bytearray(path.read_bytes())
    claim(content)
    path.write_bytes(content)
    check_costs_little(path)


@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_what_an_avi_claims_is_not_believed(tmp_path, side):
    path = videos.write_video(tmp_path / "v.avi", videos.numbered(5), codec="mjpeg")
    content = bytearray(path.read_bytes())
    at = content.index(b"strf") + 12  # BITMAPINFOHEADER: size, then width and height
    content[at : at + 8] = struct.pack("<II", side, side)
    at = content.index(b"avih") + 24  # dwTotalFrames
    content[at : at + 4] = struct.pack("<I", 10**9)
    at = content.index(b"strh") + 40  # dwLength
    content[at : at + 4] = struct.pack("<I", 10**9)
    path.write_bytes(content)
    check_costs_little(path)


def test_a_jpeg_that_claims_65500_pixels_is_not_believed(tmp_path):
    path = videos.write_video(tmp_path / "v.avi", videos.numbered(5), codec="mjpeg")
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"\xff\xc0", at + 1)) >= 0:  # ITU T.81, B.2.2
        content[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    path.write_bytes(content)
    check_costs_little(path)


def check_costs_little(path) -> None:
    """Refused, or read as what it is, in seconds and without much memory."""
    with isolated.Worker(20) as worker:
        try:
            peak = worker.call(
                videos.peak_megabytes, path, fps=12, short_side=256, max_seconds=100
            )
            assert peak < 500
        except frames.VideoError as error:
            assert error.reason in frames.REASONS


@needs_media
@pytest.mark.parametrize(
    "name, want",
    [
        # (frames, height, width) at 12 fps and a short side of 256
        ("clips/av1_video.mkv", (60, 256, 455)),
        ("clips/android_slow_motion.mp4", (7, 256, 455)),
        ("clips/bear_vp9_odd_dims.webm", (13, 121, 161)),
        ("clips/carphone_distorted.mp4", (49, 144, 193)),
        ("clips/exo_sample.avi", (50, 256, 614)),
        ("clips/exo_sample.flv", (12, 256, 384)),
        ("clips/h265_video.mp4", (12, 128, 128)),
        ("clips/rot_0.mov", (2, 256, 454)),
        ("clips/rot_90.mov", (2, 454, 256)),
        ("clips/rot_180.mov", (2, 256, 454)),
        ("clips/sample_fragmented.mp4", (13, 256, 384)),
        ("clips/video_desks.3gp", (61, 256, 341)),
        ("odd/-video-with-dash-.mp4", (60, 1, 1)),
        ("odd/corrupted_decord.mp4", (60, 256, 455)),
        ("odd/failing_audio.mp4", (135, 256, 455)),
        ("odd/mdat_too_long.mp4", (13, 256, 384)),
        ("odd/one_frame_rotation_90.mp4", (1, 100, 60)),
        ("odd/one_frame_sar_16_9.mp4", (1, 256, 607)),
        ("odd/unordered_decord.mov", (2, 50, 50)),
        ("odd/audio_only.mp4", "no_video_stream"),
        ("odd/audio_only_opus.mkv", "no_video_stream"),
        ("odd/chunk_out_of_range.mp4", "unreadable"),
        ("odd/header_only_bipbop.mp4", "no_frames"),
        ("odd/invalid_userdata.mp4", "no_frames"),
        ("odd/no_timescale.mp4", "damaged"),
        ("odd/smallest.avi", "no_frames"),
        ("odd/smallest.mp4", "no_video_stream"),
        ("odd/zero_bytes.webm", "empty_file"),
    ],
)
def test_real_files(tmp_path, name, want):
    path = videos.MEDIA / name
    if isinstance(want, str):
        assert refusal(path).reason == want
        return
    video = extract(path)
    assert (len(video.frames), video.height, video.width) == want


@needs_media
def test_real_files_are_read_whatever_their_name(tmp_path):
    path = tmp_path / "AAAA1.mp4"  # Charades says .mp4; this one is Matroska
    shutil.copy(videos.MEDIA / "clips/av1_video.mkv", path)
    assert len(extract(path).frames) == 60


def stream(source, fps=12, short_side=256):
    return list(frames.stream(source, fps=fps, short_side=short_side))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "one.mp4"])
def test_a_stream_gives_the_frames_of_the_whole_video(tmp_path, name):
    count = 1 if name == "one.mp4" else 31
    times = [37 * i + 11 * (i % 3) for i in range(count)] if name == "v.mkv" else None
    path = videos.write_video(tmp_path / name, moving(count), milliseconds=times)
    whole = extract(path).frames
    assert stream(path) == [(k / 12, jpeg) for k, jpeg in enumerate(whole)]
    with path.open("rb") as file:
        assert stream(file) == stream(path)


def test_a_pipe_is_read_as_it_comes(tmp_path):
    path = videos.write_video(tmp_path / "v.ts", moving(48), encoder={"g": "6"})
    content, first = path.read_bytes(), path.stat().st_size * 3 // 4
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "wb", 0) as pipe:
        threading.Thread(target=pipe.write, args=[content[:first]]).start()
        arriving = frames.stream(file, fps=12, short_side=24)
        got = [next(arriving) for _ in range(8)]  # while the rest is not there yet

        def finish():
            pipe.write(content[first:])
            pipe.close()

        threading.Thread(target=finish).start()
        got += arriving
    assert got == stream(path, short_side=24)


def test_a_stream_tells_of_a_truncated_file_at_its_end(tmp_path):
    path = videos.write_video(tmp_path / "v.mp4", moving(48), movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    got, arriving = [], frames.stream(path, fps=12, short_side=24)
    with pytest.raises(frames.VideoError) as error:
        for one in arriving:
            got.append(one)
    assert error.value.reason == "truncated"
    assert len(got) > 5


def test_streams_that_cannot_be_used_say_why(tmp_path):
    for name, content, reason in (
        ("missing.mp4", None, "missing"),
        ("empty.mp4", b"", "empty_file"),
        ("text.mp4", b"Not a video at all.\n" * 99, "unreadable"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(frames.VideoError) as error:
            stream(path)
        assert error.value.reason == reason
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader, "rb") as file, pytest.raises(frames.VideoError) as error:
        stream(file)
    assert error.value.reason == "unreadable"


def test_a_leap_in_time_ends_a_stream(tmp_path):
    path = videos.write_video(
        tmp_path / "v.mkv", videos.numbered(2), milliseconds=[0, 2**32], fps=24
    )
    with pytest.raises(frames.VideoError) as error:
        stream(path, fps=1)
    assert error.value.detail == "one frame lasts more than 3600 s"


def test_a_long_stream_takes_no_more_memory_than_a_short_one(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 120, 160, 3), np.uint8)
    path = videos.write_video(tmp_path / "v.avi", pictures, codec="mjpeg")
    long = videos.repeat_packets(path, tmp_path / "long.avi", times=40)
    with isolated.Worker(60) as worker:
        early, late, num_bytes = worker.call(
            videos.stream_megabytes, long, fps=24, short_side=120, early=200
        )
    assert num_bytes > 20e6  # of JPEG: what holding them all would take
    assert late - early < 6


def test_an_interrupted_stream_stays_ended(tmp_path):
    class Interrupted(io.BytesIO):
        def read1(self, size=-1):
            raise KeyboardInterrupt

    pipe = frames._Pipe(Interrupted())
    assert pipe.read(5) == b""
    pipe._read = lambda size: b"more"
    assert pipe.read(5) == b""
