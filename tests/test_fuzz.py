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


KINDS = ",".join(fuzz.KINDS)


def test_some_hundreds_of_each_kind():
    check(counts_of(KINDS, 300, 1, 200), KINDS, 300)


def test_mutated_records_in_training():
    check(counts_of("training", 300, 1, 200), "training", 300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_each_kind(seed):
    kinds = f"{KINDS},training"
    check(counts_of(kinds, 3000, seed, 3000), kinds, 3000)
