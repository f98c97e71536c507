import json

import pytest

from tests import golden_summary


@pytest.mark.parametrize("name", golden_summary.MODELS)
def test_golden_summary(name):
    golden = json.loads(golden_summary.golden_path(name).read_text())
    assert golden_summary.summary(name) == golden, (
        f"The model changed. If it was meant to: {golden_summary.COMMAND}"
    )
