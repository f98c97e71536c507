import os
import time

import numpy as np
import pytest

from data import frames, isolated
from tests.data import videos


def test_calls_run_in_one_other_process():
    with isolated.Worker(20) as worker:
        first, second = worker.call(os.getpid), worker.call(os.getpid)
    assert first == second != os.getpid()


def test_exceptions_come_back(tmp_path):
    with isolated.Worker(20) as worker:
        with pytest.raises(frames.VideoError) as error:
            worker.call(
                frames.extract, tmp_path / "x", fps=1, short_side=9, max_seconds=1
            )
        assert error.value.reason == "missing"
        assert worker.call(os.path.basename, "a/b") == "b"


def test_a_crash_is_told_and_the_next_call_works():
    with isolated.Worker(20) as worker:
        with pytest.raises(isolated.Crashed, match="was ended by SIGSEGV"):
            worker.call(videos.crash)
        with pytest.raises(isolated.Crashed, match="ended with status 3"):
            worker.call(os._exit, 3)
        assert worker.call(os.path.basename, "a/b") == "b"


def test_a_hang_is_ended_and_the_next_call_works():
    with isolated.Worker(1.5) as worker:
        start = time.monotonic()
        with pytest.raises(isolated.TimedOut, match=r"no answer after 1.5 s"):
            worker.call(time.sleep, 60)
        assert time.monotonic() - start < 10
        assert worker.call(os.path.basename, "a/b") == "b"


def test_workers_share_out_calls_and_outlive_crashes():
    with isolated.Workers(2, 20) as workers:
        both = [workers.submit(videos.pid_after, 0.7) for _ in range(2)]
        assert len({call.result() for call in both}) == 2
        with pytest.raises(isolated.Crashed):
            workers.submit(videos.crash).result()
        calls = [workers.submit(os.path.basename, f"a/{i}") for i in range(9)]
        assert [call.result() for call in calls] == list("012345678")


def test_workers_end_what_still_runs():
    start = time.monotonic()
    with isolated.Workers(1, 60) as workers:
        running, waiting = (workers.submit(time.sleep, 50) for _ in range(2))
        while not running.running():
            time.sleep(0.01)
    assert time.monotonic() - start < 20
    assert isinstance(running.exception(), isolated.Crashed)
    assert waiting.cancelled()


def test_memory_is_limited():
    with isolated.Worker(20) as worker, pytest.raises(MemoryError):
        worker.call(bytearray, isolated.MAX_MEMORY_BYTES)


def test_a_long_video_is_not_held_in_memory(tmp_path):
    # 1,200 decoded pictures are 420 MB as YUV and 830 MB as RGB.
    picture = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
    picture = picture.repeat(10, axis=0).repeat(8, axis=1)
    path = videos.write_video(tmp_path / "v.mp4", [picture] * 1200)
    with isolated.Worker(60) as worker:
        peak = worker.call(
            videos.peak_megabytes, path, fps=24, short_side=48, max_seconds=99
        )
    assert peak < 250
