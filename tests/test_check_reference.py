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


VIDEO = "vivit_joint_token.npz"
FACTORISED = "vivit_factorised_encoder_token.npz"
LEARNER = "tlvit_video_v11_loc2.npz"
REPRESENTATION = "tlvit_repr_video.npz"


def sets(*path, **values):
    """A change of the constructor's fields, or of those inside one of them."""

    def change(config):
        fields = config["constructor"]
        for name in path:
            fields = fields[name]
        fields.update(values)

    return change


@pytest.mark.parametrize(
    "name, change, message",
    [
        (VIDEO, sets(classifier="0"), "classifier=0"),
        (VIDEO, sets(positional_embedding="none"), "positional_embedding=none"),
        (
            VIDEO,
            sets("attention_config", type="factorized_dot_product_attention"),
            "attention_config.type=factorized_dot_product_attention",
        ),
        (
            VIDEO,
            sets("attention_config", type="factorized_self_attention_block"),
            "attention_config.type=factorized_self_attention_block",
        ),
        (VIDEO, sets("temporal_encoding_config", method="new"), "encoding new"),
        (
            FACTORISED,
            sets("attention_config", spatial_only_baseline=True),
            "spatial_only_baseline",
        ),
        (LEARNER, sets("tokenizer", use_v11=False), "v1.0 on what is no square grid"),
        (LEARNER, sets(classifier="token"), "TokenLearner on a class token"),
        (
            VIDEO,
            lambda c: c["constructor"].update(
                patches={"size": [5, 8]},
                temporal_encoding_config={
                    "method": "temporal_sampling",
                    "n_sampled_frames": 3,
                },
            ),
            "patches that reach into the next frame",
        ),
        (
            LEARNER,
            lambda c: c["call"].update(train=True),
            "dropout of the authors' draws",
        ),
    ],
)
def test_what_we_do_not_have_of_videos_is_named(name, change, message, tmp_path):
    path = changed(name, tmp_path, config=change)
    with pytest.raises(check_reference.UnsupportedError, match=message):
        check_reference.check_file(path)


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            VIDEO,
            sets(patches={"size": [8, 8]}),
            "a size of 3 numbers for 3d_conv",
        ),
        (VIDEO, sets(patches={"grid": [3, 5, 3]}), "a size of 3 numbers for"),
        (
            LEARNER,
            lambda c: c["constructor"]["tokenizer"].pop("temporal_encoding_config"),
            "temporal_encoding_config lacks method",
        ),
        (FACTORISED, without("temporal_num_heads"), "lacks temporal_num_heads"),
        (VIDEO, sets("attention_config", order="new"), "has unknown fields: order"),
    ],
)
def test_what_is_wrong_with_a_video_model_is_named(name, change, message, tmp_path):
    path = changed(name, tmp_path, config=change)
    with pytest.raises(ValueError, match=message):
        check_reference.check_file(path)


def test_images_are_no_clips(tmp_path):
    path = changed(VIDEO, tmp_path, __input__=lambda x: x[:, 0])
    with pytest.raises(check_reference.UnsupportedError, match="input of rank 4"):
        check_reference.check_file(path)


def test_a_model_without_its_head_is_compared_at_its_last_tensor(tmp_path):
    path = changed(VIDEO, tmp_path, config=sets(return_preclassifier=True))
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files if "output_projection" not in k}
    arrays["__output__"] = arrays["__mid__/Transformer"]
    np.savez(path, **arrays)
    findings = check_reference.check_file(path)
    assert findings[0].name == "output" and findings[0].error < 1e-5
    assert all(f.is_ok for f in findings)


def test_a_head_may_not_be_missing(tmp_path):
    path = changed(VIDEO, tmp_path)
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files if "output_projection" not in k}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="output_projection/kernel .not in the file"):
        check_reference.check_file(path)


@pytest.mark.parametrize(
    "num_frames, count, want",
    [
        (9, 1, [4]),
        (32, 7, [4, 8, 12, 16, 20, 24, 28]),
        (8, 2, [3, 5, 7]),  # one frame more: 3 x 2.6667 is below 8 in float32
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
    ],
)
def test_frames_are_those_of_the_authors(num_frames, count, want):
    assert check_reference._sampled_frames(num_frames, count) == want


@pytest.mark.parametrize("count", [2, 3])
def test_sampled_frames_of_the_authors_are_what_the_model_sees(count, tmp_path):
    """As if the clip held no other frames, as that of the representation does."""
    path = changed(REPRESENTATION, tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    clip = arrays["__input__"]
    taken = {2: [3, 5, 7], 3: [2, 4, 6]}[count]
    longer = np.zeros([len(clip), 8, *clip.shape[2:]], np.float32)
    longer[:, taken] = clip
    fields = json.loads(str(arrays["__config__"]))["constructor"]
    sampling = {"method": "temporal_sampling", "n_sampled_frames": count}
    case = check_reference._vivit(
        arrays | {"__input__": longer},
        fields
        | {"num_classes": 1, "return_preclassifier": True}
        | {"patches": fields["tokenizer"]["patches"]}
        | {"temporal_encoding_config": sampling},
        **check_reference._tokenizer_options(arrays, fields),
    )
    case.load(path)
    want = arrays["__output__"]
    limit = check_reference.LIMIT * np.abs(want).max()
    np.testing.assert_allclose(case.run()[0], want, rtol=0, atol=limit)


def test_rows_that_fill_no_patch_are_cut_off_every_frame(tmp_path):
    path = changed(
        REPRESENTATION,
        tmp_path,
        __input__=lambda x: np.pad(x, [[0, 0], [0, 0], [0, 3], [0, 5], [0, 0]]),
    )
    assert all(f.is_ok for f in check_reference.check_file(path))


@pytest.mark.parametrize("place", [4, 9])
def test_a_token_learner_after_the_last_block_of_a_video_model_is_none(place, tmp_path):
    path = changed(LEARNER, tmp_path, config=sets("tokenizer", tokenlearner_loc=place))
    with pytest.raises(ValueError, match="6 names do not fit .*in the file alone"):
        check_reference.check_file(path)


def test_an_empty_folder_fails(tmp_path, capsys):
    assert check_reference.main([str(tmp_path)]) == 1
    assert "there are no .npz files" in capsys.readouterr().err
