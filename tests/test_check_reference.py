import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import check_reference

SCRIPT = Path(check_reference.__file__)
REFERENCE = SCRIPT.parents[2] / "shared" / "reference"
CASES = sorted(REFERENCE.glob("*.npz")) or [
    pytest.param(REFERENCE, marks=pytest.mark.skip("the authors' outputs are not here"))
]
LAYER, MODEL = "tl_v11_4d.npz", "tlvit_patch_gap.npz"
GRADIENTS = "tlvit_v11_fuser_loc2_grad.npz"


def changed(name: str, folder: Path, *, config=None, **arrays) -> Path:
    """A copy of a case with other arrays, and a config that `config` changed."""
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip("the authors' outputs are not here")
    with np.load(path) as file:
        copy = {key: file[key] for key in file.files}
    if config is not None:
        fields = json.loads(str(copy["__config__"]))
        config(fields)
        copy["__config__"] = np.array(json.dumps(fields))
    for key, change in arrays.items():
        key = key.replace("__in__", "/")
        copy[key] = change(copy[key])
    np.savez(folder / name, **copy)
    return folder / name


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_we_agree_with_the_authors(path):
    try:
        findings = check_reference.check_file(path)
    except check_reference.UnsupportedError as error:
        pytest.skip(str(error))
    assert findings and all(finding.is_ok for finding in findings)


def test_it_runs_from_anywhere(tmp_path):
    changed(LAYER, tmp_path)
    got = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode == 0, got.stderr
    first, summary = got.stdout.splitlines()
    assert first.startswith("tl_v11_4d  ok ")
    assert summary.startswith("1 files: 1 ok, 0 FAILED, 0 unsupported")
    assert not got.stderr


@pytest.mark.parametrize(
    "name", ["LayerNorm_0__in__scale", "token_masking__in__Dense_1__in__kernel"]
)
def test_a_perturbed_parameter_fails(name, tmp_path, capsys):
    changed(LAYER, tmp_path, **{name: lambda x: x + 1e-3})
    assert check_reference.main([str(tmp_path)]) == 1
    assert "FAILED       output" in capsys.readouterr().out


def test_a_value_that_is_no_number_fails(tmp_path, capsys):
    changed(LAYER, tmp_path, __output__=lambda x: x * np.nan)
    assert check_reference.main([str(tmp_path)]) == 1
    assert "FAILED       output nan" in capsys.readouterr().out


def test_a_wrong_intermediate_tensor_fails(tmp_path, capsys):
    name = "__mid____in__Transformer__in__encoderblock_1"
    changed(MODEL, tmp_path, **{name: lambda x: x * 1.001})
    assert check_reference.main([str(tmp_path)]) == 1
    assert "(Transformer/encoderblock_1)" in capsys.readouterr().out


def test_a_wrong_gradient_fails(tmp_path):
    name = "__grad____in__embedding__in__kernel"
    path = changed(GRADIENTS, tmp_path, **{name: lambda x: x * 1.001})
    findings = check_reference.check_file(path)
    wrong = [(f.of, f.name) for f in findings if not f.is_ok]
    assert wrong == [("gradient", "embedding/kernel")]


def test_a_wrong_warm_start_fails(tmp_path):
    name = "vivit/result/embedding/kernel"
    path = changed(
        "warmstart.npz", tmp_path, **{name: lambda kernel: kernel[::-1]}
    )  # the first frame, where t // 2 is meant
    findings = check_reference.check_file(path)
    assert [f.name for f in findings if not f.is_ok] == ["vivit/embedding/kernel"]


@pytest.mark.parametrize("name", ["warmstart.npz", "kernel_inflation.npz"])
def test_an_inflation_that_we_do_not_have_is_unsupported(name, tmp_path):
    def change(config):
        text = json.dumps(config).replace('"central_', '"average_arp_')
        config.update(json.loads(text))

    path = changed(name, tmp_path, config=change)
    with pytest.raises(check_reference.UnsupportedError, match="=average_arp_frame"):
        check_reference.check_file(path)


def test_a_tensor_that_we_do_not_have_is_named(tmp_path, capsys):
    path = changed(MODEL, tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, **{"__mid__/Transformer/new": np.zeros(2)})
    assert check_reference.main([str(tmp_path)]) == 0
    assert "Transformer/new  (no counterpart in ours)" in capsys.readouterr().out


def without(field):
    return lambda config: config["constructor"].pop(field)


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            LAYER,
            lambda c: c.update({"class": "Net"}),
            "class 'Net' is unknown. Known: ",
        ),
        (LAYER, without("num_tokens"), "constructor lacks num_tokens"),
        (
            LAYER,
            lambda c: c["constructor"].update(depth=3),
            "constructor has unknown fields: depth",
        ),
        (MODEL, without("num_heads"), "constructor lacks num_heads"),
        (
            MODEL,
            lambda c: c["constructor"]["tokenizer"].update(type="new"),
            "must be patch, dynamic or video, got 'new'",
        ),
        (
            MODEL,
            lambda c: c["constructor"].update(num_layers=3),
            "tlvit_patch_gap.npz: .*16 names do not fit this model: Transfor",
        ),
    ],
)
def test_what_it_does_not_understand_fails_by_name(
    name, change, message, tmp_path, capsys
):
    changed(name, tmp_path, config=change)
    changed("fewshot.npz", tmp_path)  # the run goes on
    assert check_reference.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"FAILED       {name}: " in out
    assert re.search(message, out)
    assert "2 files: 1 ok, 1 FAILED, 0 unsupported" in out


def test_a_token_learner_after_the_last_block_is_none(tmp_path):
    def change(config):
        config["constructor"]["tokenizer"].update(type="dynamic", tokenlearner_loc=7)

    path = changed(MODEL, tmp_path, config=change)
    assert all(f.is_ok for f in check_reference.check_file(path))


def test_an_empty_folder_fails(tmp_path, capsys):
    assert check_reference.main([str(tmp_path)]) == 1
    assert "there are no .npz files" in capsys.readouterr().err
