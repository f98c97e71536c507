import json

from benchmarks import vector_attention


def test_prints_and_writes_a_shape(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--shapes", "16x8", "--rivals", "chunked", "--rounds", "2"]
    vector_attention.main([*arguments, "--json", str(path)])
    (row,) = json.loads(path.read_text())
    assert row["shape"] == [1, 16, 8]
    assert row["max_error"] < 1e-5
    assert set(row["speedup"]) == set(row["memory_ratio"]) == {"chunked"}
    assert "times as fast as chunked" in capsys.readouterr().out
