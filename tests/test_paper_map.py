"""docs/PAPER_MAP.md names symbols and tests that are there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| [^|]+ \| `(\S+?)\.py:(\w+)` \| `(\S+?):(\w+)` \|",
    (ROOT / "docs/PAPER_MAP.md").read_text(),
    re.M,
)


def test_every_row_is_read():
    table = (ROOT / "docs/PAPER_MAP.md").read_text().count("\n| ")
    assert len(ROWS) == table - 2 + 1 > 10  # less the header and its rule


@pytest.mark.parametrize("path, symbol, test_file, test", ROWS)
def test_symbols_and_tests_are_there(path, symbol, test_file, test):
    module = importlib.import_module("tl_tf." + path.replace("/", "."))
    assert hasattr(module, symbol)
    assert re.search(rf"^def {test}\(", (ROOT / test_file).read_text(), re.M)
