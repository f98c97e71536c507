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


def states_by_class(second: float) -> list[np.ndarray]:
    """x, y, size phase and angle of each object at one moment, by class acting then."""
    settings = synthetic.Settings()
    found = [[] for _ in synthetic.CLASSES]
    for index in range(4000):
        for thing in synthetic.things(settings, "train", index):
            (state,) = thing.states(np.array([second]))
            for action, start, end, _ in thing.actions:
                if action is not None and start <= second <= end:
                    found[action].append(state)
    return [np.array(states) for states in found]


@pytest.mark.parametrize("second", [0.0, 1.0, 2.7])
def test_a_single_frame_says_nothing_about_the_class(second):
    # Uniform at every moment for every class: compare with the uniform distribution
    # (Kolmogorov-Smirnov; 2.2 / sqrt(n) is exceeded once in 8,000 times).
    for states in states_by_class(second):
        steps = np.arange(1, len(states) + 1)[:, None] / len(states)
        distance = np.abs(np.sort(states, axis=0) - steps).max(axis=0)
        assert len(states) > 300
        assert (distance < 2.2 / np.sqrt(len(states))).all()


def test_opposite_classes_are_each_other_backwards():
    seconds = np.arange(33) / 12
    thing = next(
        thing
        for index in range(99)
        for thing in synthetic.things(synthetic.Settings(), "train", index)
        if len(thing.actions) == 1 and thing.actions[0][0] is not None
    )
    ((action, start, end, speed),) = thing.actions
    there = thing.states(seconds)
    opposite = dataclasses.replace(
        thing, start=there[-1], actions=((action ^ 1, start, end, speed),)
    )
    difference = opposite.states(seconds)[::-1] - there
    np.testing.assert_allclose((difference + 0.5) % 1, 0.5, atol=1e-9)


@pytest.mark.parametrize("action, axis, sign", [(0, 1, -1), (1, 1, 1), (2, 0, -1)])
def test_classes_move_as_named(action, axis, sign):
    thing = next(
        thing
        for index in range(200)
        for thing in synthetic.things(SETTINGS, "train", index)
        if thing.actions[0][0] == action
    )
    x, y = thing.states(np.array([0.0, 0.1]))[:, :2].T
    moved = ((x if axis else y)[1] - (x if axis else y)[0] + 0.5) % 1 - 0.5
    assert moved * sign > 0.03


def test_turning_clockwise_looks_so():
    # A corner pointing right turns towards the bottom, as the hands of a clock do.
    thing = synthetic.Thing(
        part=(slice(0, 40), slice(0, 40)),
        start=np.array([0.5, 0.5, 0.9, 0.75]),
        actions=((6, 0.0, 1.0, np.array([0, 0, 0, 0.25])),),
        tremble=0.0,
        shape=3,  # a drop, whose tip points down at angle 0: so right at 3/4
        color=np.ones(3),
        stripes=np.zeros(2),
    )
    picture = np.zeros((2, 40, 40, 3))
    synthetic._draw(picture, thing, np.array([0.0, 1.0]))
    y, x = np.mgrid[:40, :40] - 20
    mass = picture[..., 0] / picture[..., 0].sum(axis=(1, 2), keepdims=True)
    far = np.hypot(x, y) > 10  # the tip alone reaches out this far
    right = [(m * x * far).sum() for m in mass]
    down = [(m * y * far).sum() for m in mass]
    assert abs(right[0]) > abs(down[0]) and abs(down[1]) > abs(right[1])
    assert np.sign(right[0]) == np.sign(down[1])


def test_without_an_encoder_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(ValueError, match=r"no H.264 encoder \(libx264\). Install"):
        synthetic.write_video(tmp_path / "v.mp4", SETTINGS, "train", 0)


def test_parts_do_not_overlap():
    for index in range(50):
        seen = np.zeros((64, 80), int)
        for thing in synthetic.things(SETTINGS, "train", index):
            seen[thing.part] += 1
        assert seen.max() == 1
