"""Mutated files give clear errors: no other exception, no crash, bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz

ROOT = Path(__file__).parents[1]


def counts_of(kinds: str, count: int, seed: int, timeout: float) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", kinds, str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one.pop("kind"): one for one in found}


def check(found: dict[str, dict], kinds: str, count: int) -> None:
    assert list(found) == kinds.split(",")
    for counts in found.values():
        assert sum(counts.values()) == count
        assert counts["refused"] > count / 10  # else nothing was mutated


KINDS = ",".join([*fuzz.KINDS, "training"])  # in one process, as TensorFlow is slow


def test_some_hundreds_of_each_kind():
    check(counts_of(KINDS, 200, 1, 200), KINDS, 200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_each_kind(seed):
    check(counts_of(KINDS, 3000, seed, 3000), KINDS, 3000)
