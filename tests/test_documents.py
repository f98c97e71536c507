"""The documents: commands parse, links lead somewhere, quotes are true, code runs."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import data
from data import build, manifest
from docs import make_recipes
from tests.data import videos
from tl_tf import config, experiment, models, records

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"^ {4,}(python .*(?:\\\n.*)*)", re.M)
INLINE = re.compile(r"`(python (?:run\.py|-m) [^`]*)`")
PLACEHOLDERS = {"RECIPE": "gin/quickstart.gin"}
CODE = [ROOT / "run.py", *ROOT.glob("tl_tf/**/*.py"), *ROOT.glob("data/*.py")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, *languages: str) -> list[str]:
    return [text for name, text in FENCE.findall(path.read_text()) if name in languages]


def commands(path: Path) -> list[list[str]]:
    """Every `python …` of a document, as its arguments."""
    text = path.read_text()
    lines = []
    for block in fences(path, "", "bash"):
        lines += re.sub(r"\\\n", " ", block).splitlines()
    lines += [re.sub(r"\\\n", " ", found) for found in INDENTED.findall(text)]
    lines += [found for found in INLINE.findall(re.sub(r"\s+", " ", text))]
    lines = [part for line in lines for part in re.sub(r"[][|]", "", line).split("&&")]
    found = [line.strip() for line in lines if line.strip().startswith("python ")]
    return [shlex.split(line, comments=True) for line in found if "…" not in line]


ALL_COMMANDS = [
    pytest.param(command, id=f"{name_of(path)}: {' '.join(command)}"[:90])
    for path in DOCUMENTS
    for command in commands(path)
]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_parses(command):
    _, program, *rest = command
    if program == "-c":
        ast.parse(rest[0])
    elif program == "run.py":
        check_run(rest)
    elif program == "-m" and rest[0] == "data.build":
        if len(rest) > 1 and "--help" not in rest:
            build._parser().parse_args(rest[1:])
    elif program == "-m":
        check_module(*rest)
    else:
        check_flags(ROOT / program, rest)


def check_run(arguments: list[str]) -> None:
    source = (ROOT / "run.py").read_text()
    modes = re.search(r"MODES = \((.*?)\)", source, re.S)[1]
    flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    values = {"gin_file": [], "gin_bindings": []}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        assert argument.startswith("--") and name in flags, argument
        if name == "mode":
            assert f'"{value}"' in modes, argument
        if name in values:
            values[name].append(PLACEHOLDERS.get(value, value))
    if not any(value.endswith("NAME.gin") for value in values["gin_file"]):
        config.check(values["gin_file"], values["gin_bindings"])


def check_module(name: str, *arguments: str) -> None:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if path.is_file():
        check_flags(path, arguments)
    else:
        assert name in ("tl_tf", "pytest", "venv", "pip")


def check_flags(path: Path, arguments) -> None:
    source = path.read_text()
    for argument in arguments:
        if argument.startswith("--") and argument != "--help":
            name = argument[2:].partition("=")[0].removeprefix("no-")
            plain = re.search(rf"\b{name.replace('-', '_')}\b", source)
            assert f'"--{name}"' in source or plain, f"{path.name}: {argument}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_of_requirements_are_there(path):
    for name in re.findall(r"requirements[\w-]*\.txt", path.read_text()):
        assert (ROOT / name).is_file(), name


def slug(heading: str) -> str:
    """What GitHub makes of a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{name_of(path)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", found.read_text()), re.M)
            assert anchor in map(slug, headings), f"{name_of(path)}: {target}"


def said(node: ast.expr) -> str | None:
    """A string as a document quotes it: "…" for what varies."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (getattr(value, "value", None) for value in node.values)
        return "".join(p if isinstance(p, str) else "…" for p in parts)
    return None


def all_said() -> str:
    """All strings of the code, with spaces and variable parts made alike."""
    nodes = [n for path in CODE for n in ast.walk(ast.parse(path.read_text()))]
    return "\n".join(alike(text) for node in nodes if (text := said(node)))


def alike(text: str) -> str:
    return re.sub(r"…+", "…", re.sub(r"\s+", " ", text))


def test_quoted_messages_are_in_the_code():
    text = all_said()
    quotes = "".join(fences(ROOT / "docs" / "TROUBLESHOOTING.md", "message"))
    assert quotes.count("\n") > 20
    for quote in quotes.splitlines():
        assert alike(quote) in text, quote


def test_the_page_of_recipes_is_up_to_date():
    assert make_recipes.PAGE.read_text() == make_recipes.page(), make_recipes.COMMAND


def test_a_recipe_without_row_is_named(tmp_path, monkeypatch):
    (tmp_path / "gin").mkdir()
    (tmp_path / "gin" / "mine.gin").write_text("# My recipe.\nTOTAL_STEPS = 1\n")
    monkeypatch.setattr(make_recipes, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="mine.gin: its head has no title, row or"):
        make_recipes.Head.read("gin/mine.gin")


def test_a_recipe_whose_model_changed_is_named(tmp_path, monkeypatch):
    golden = make_recipes.GOLDEN.read_text().replace('"model": "', '"model": "x', 1)
    (tmp_path / "recipes.json").write_text(golden)
    monkeypatch.setattr(make_recipes, "GOLDEN", tmp_path / "recipes.json")
    with pytest.raises(ValueError, match="is another than recipes.json counts"):
        make_recipes.page()


def test_devices_hold_a_batch():
    """Of 16 GB, 4 are variables: 12 GB hold two examples of 1.3 x 4 GB each."""
    found = {"copies": 4, "batch_size": 7}
    costs = {"weight_bytes": 1e9, "training_bytes": 4e9}
    assert make_recipes.devices(found, costs, 16) == "4"  # 2 each, for 7
    assert make_recipes.devices(found, costs, 80) == "1"  # 14
    assert make_recipes.devices(found, costs, 8) == "no"


def write_files(path: Path, folder: Path) -> None:
    """Writes the blocks of a document that begin with the name of their file."""
    for block in fences(path, "", "python"):
        name = re.match(r"# (\S+\.(?:py|gin))\n", block)
        if name:
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(block)


def test_the_model_of_add_a_model_trains(tmp_path, tiny_data, monkeypatch, capfd):
    write_files(ROOT / "docs" / "ADD_A_MODEL.md", tmp_path)
    monkeypatch.setattr(models, "__path__", [str(tmp_path / "tl_tf" / "models")])
    monkeypatch.chdir(tmp_path)
    config.load(
        ["gin/synthetic_mymodel.gin"],
        ["TOTAL_STEPS = 2", "BATCH_SIZE = 2", "build_schedule.warmup_steps = 1"],
    )
    folders = {"model_dir": tmp_path / "run", "data_dir": tiny_data, "tpu": None}
    experiment.run("train_and_eval", **folders)
    assert (tmp_path / "run" / "results" / "test-2.json").is_file()
    experiment.run("inspect", **folders)
    output = capfd.readouterr().out
    assert "mymodel, one forward pass of 1 x 8 x 32 x 32 x 3" in output
    assert "token_learner" in output


def test_the_data_set_of_add_a_dataset_is_built(tmp_path, monkeypatch):
    write_files(ROOT / "docs" / "ADD_A_DATASET.md", tmp_path)
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path / "data")])
    monkeypatch.setitem(manifest.DATASETS, "zoo", "data.zoo")
    (tmp_path / "zoo" / "videos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, files in {"train": ["a", "b", "c"], "test": ["d"]}.items():
        lines = [f"{name}.mp4,{'newt' if name > 'b' else 'emu'}\n" for name in files]
        (tmp_path / "zoo" / f"{split}.csv").write_text("file,animal\n" + "".join(lines))
        for name in files:
            pictures = rng.integers(0, 256, (6, 32, 48, 3), np.uint8)
            videos.write_video(tmp_path / "zoo" / "videos" / f"{name}.mp4", pictures)
    command = ["zoo", f"--zoo_dir={tmp_path / 'zoo'}", f"--data_dir={tmp_path}/built"]
    assert build.main(command) == 0
    info = records.DatasetInfo.load(tmp_path / "built", "zoo")
    assert info.classes == ["emu", "newt"]
    assert info.split("train")["labels_per_class"] == [2, 1]
    (tmp_path / "zoo" / "test.csv").write_text("file,label\n")
    assert build.main([*command, "--overwrite"]) == 2


def make_videos(folder: Path) -> None:
    """Two classes of real clips where there are some, else of made ones."""
    archive = ROOT.parent / "shared" / "data" / "fight_surv_128.tar"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            for number in range(1, 25):
                for name, start in (("fight", "fi"), ("noFight", "nofi")):
                    member = f"fight_surv_128/{name}/{start}{number:03d}.mp4"
                    (folder / name).mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member).read()
                    (folder / name / Path(member).name).write_bytes(content)
        return
    rng = np.random.default_rng(0)
    for name, step in (("left", -3), ("right", 3)):
        (folder / name).mkdir(parents=True)
        for number in range(1, 25):
            picture = rng.integers(0, 256, (96, 128, 3), np.uint8)
            moved = [np.roll(picture, step * i, axis=1) for i in range(48)]
            videos.write_video(folder / name / f"{number:03d}.mp4", moved)


def link_checkout(folder: Path) -> None:
    """Makes a folder in which commands run, and write, as in a checkout."""
    for name in ("run.py", "gin", "data", "tl_tf"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.slow
def test_the_guide_runs_as_written(tmp_path):
    """With fewer steps, by the binding that it names for a trial."""
    link_checkout(tmp_path)
    make_videos(tmp_path / "my_videos")
    guide = ROOT / "docs" / "GUIDE.md"
    trial = '--gin_bindings="TOTAL_STEPS = 60"'
    assert f"`{trial}`" in guide.read_text()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in fences(guide, "bash"):
        script = re.sub(r"(run.py --gin_file=\S+)", rf"\1 {trial}", block)
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (
            f"{script}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    run = tmp_path / "runs" / "mine"
    assert (run / "results" / "test-60.json").is_file()
    predictions = (run / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 48
    assert len(list((run / "predictions").glob("*.predicted.mp4"))) == 48
    assert list((run / "token_pictures").glob("*.png"))
    card = run / "export" / "model_card.json"  # the exported model predicted after it
    written = (run / "predictions" / "predictions.jsonl").stat().st_mtime
    assert written > card.stat().st_mtime


def test_the_notebook_is_as_it_was_run():
    """Whole, in order, without errors, and with nothing of the machine that ran it."""
    path = ROOT / "docs" / "tour.ipynb"
    assert path.stat().st_size < 500_000
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]
        assert not re.search(
            r"/(root|home|tmp|work)\b", "".join(output.get("text", ""))
        )


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    link_checkout(tmp_path)
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=where).execute()
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    share = re.search(r"(0\.\d+|1\.0+) right", last.outputs[-1]["text"])
    assert float(share[1]) > 0.85
