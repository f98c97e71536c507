import dataclasses

import av
import numpy as np
import pytest

from data import charades, isolated, synthetic

SETTINGS = synthetic.Settings(train_videos=6, test_videos=3, video_seconds=1.0)


def run(function, tasks):
    for task in tasks:
        function(**task)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    synthetic.make(SETTINGS, folder, run)
    return folder


def test_files_are_those_of_charades(made):
    assert charades.classes(made) == list(synthetic.CLASSES)
    videos_dir = synthetic.default_videos_dir(made)
    for split, count in (("train", 6), ("test", 3)):
        clips = list(charades.clips(split, made, videos_dir))
        assert len(clips) == count
        assert all(clip.video_path.is_file() for clip in clips)
        assert all(set(clip.notes) <= {"no_actions"} for clip in clips)


def test_videos_show_what_was_rendered(made):
    path = synthetic.default_videos_dir(made) / "A0002.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    want = synthetic.render(SETTINGS, "train", 2)
    assert np.shape(pictures) == want.shape == (24, 64, 80, 3)
    assert np.abs(np.array(pictures, float) - want).mean() < 4


def test_the_same_seed_gives_the_same_bytes_in_any_process(made, tmp_path):
    path = tmp_path / "v.mp4"
    with isolated.Worker(60) as worker:
        arguments = {"settings": SETTINGS, "split": "train", "index": 2}
        worker.call(synthetic.write_video, path=path, **arguments)
    again = synthetic.default_videos_dir(made) / "A0002.mp4"
    assert path.read_bytes() == again.read_bytes()


def test_splits_seeds_and_videos_differ():
    other = synthetic.Settings(video_seconds=1.0, seed=1)
    pictures = [
        synthetic.render(SETTINGS, "train", 0),
        synthetic.render(SETTINGS, "train", 1),
        synthetic.render(SETTINGS, "test", 0),
        synthetic.render(other, "train", 0),
    ]
    assert len({p.tobytes() for p in pictures}) == 4


def test_files_are_made_once(made):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    synthetic.make(SETTINGS, made, lambda *_: pytest.fail("made again"))
    assert before == {p: p.stat().st_mtime_ns for p in made.rglob("*")}


def test_other_settings_replace_the_files(made, tmp_path):
    settings = synthetic.Settings(train_videos=1, test_videos=1, video_seconds=0.5)
    synthetic.make(SETTINGS, tmp_path / "raw", lambda *_: None)
    synthetic.make(settings, tmp_path / "raw", lambda *_: None)
    clips = charades.clips("train", tmp_path / "raw", tmp_path)
    assert len(list(clips)) == 1


def looks_by_class(second: float) -> list[np.ndarray]:
    """x, y, size and angle of each object at one moment, by class."""
    settings = synthetic.Settings()
    found = [[] for _ in synthetic.CLASSES]
    for index in range(4000):
        thing = synthetic.thing(settings, "train", index)
        (place,) = thing.places(np.array([second]))
        for action in thing.actions:
            if action is not None:
                found[action].append([*place, thing.size, thing.angle])
    return [np.array(looks) for looks in found]


@pytest.mark.parametrize("second", [0.0, 1.0, 2.7])
def test_a_single_frame_says_nothing_about_the_class(second):
    # Uniform at every moment for every class: compare with the uniform distribution
    # (Kolmogorov-Smirnov; 2.2 / sqrt(n) is exceeded once in 8,000 times).
    for looks in looks_by_class(second):
        steps = np.arange(1, len(looks) + 1)[:, None] / len(looks)
        distance = np.abs(np.sort(looks, axis=0) - steps).max(axis=0)
        assert len(looks) > 300
        assert (distance < 2.2 / np.sqrt(len(looks))).all()


def moved(action: int, seconds: float) -> np.ndarray:
    """How far an object of this class goes along its axis, step by step."""
    axis = action // 3
    thing = next(
        thing
        for thing in (synthetic.thing(SETTINGS, "train", i) for i in range(300))
        if thing.actions[axis] == action
    )
    places = thing.places(np.arange(0, seconds, 0.02))[:, axis]
    return (np.diff(places) + 0.5) % 1 - 0.5


@pytest.mark.parametrize("action, sign", [(0, -1), (1, 1), (3, -1), (4, 1)])
def test_classes_move_as_named(action, sign):
    assert (moved(action, seconds=1.0) * sign > 0).all()


def test_swaying_goes_nowhere():
    steps = moved(2, seconds=1.0 + 0.02)
    assert abs(steps.sum()) < 1e-9
    assert (np.abs(steps) > 0).sum() > 45
    assert 0.4 < (steps > 0).mean() < 0.6


def test_opposite_classes_are_each_other_backwards():
    seconds = np.arange(33) / 12
    thing = synthetic.thing(synthetic.Settings(), "train", 0)
    there = dataclasses.replace(thing, actions=(0, 4))
    back = dataclasses.replace(
        thing, actions=(1, 3), start=there.places(seconds[-1:])[0]
    )
    difference = back.places(seconds)[::-1] - there.places(seconds)
    np.testing.assert_allclose((difference + 0.5) % 1, 0.5, atol=1e-9)


def test_some_videos_have_no_label_and_some_have_two():
    things = [synthetic.thing(synthetic.Settings(), "train", i) for i in range(200)]
    counts = [sum(action is not None for action in t.actions) for t in things]
    assert set(counts) == {0, 1, 2}


def test_without_an_encoder_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(ValueError, match=r"no H.264 encoder \(libx264\). Install"):
        synthetic.write_video(tmp_path / "v.mp4", SETTINGS, "train", 0)
