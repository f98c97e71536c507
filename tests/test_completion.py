"""Completion, asked of the shells themselves."""

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(f"gin/{path.name}" for path in ROOT.glob("gin/*.gin"))

# As readline: it breaks words at =, and the function fills COMPREPLY.
ASK_BASH = """
source <("$0" -m tl_tf.completion bash)
line=$1 command=${1%% *}
[[ $(complete -p "$command") =~ -F\\ ([^ ]+) ]]
COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=($line)
"${BASH_REMATCH[1]}" "$command" "${line##*[ =]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


def ask_bash(line: str, cwd: Path = ROOT) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK_BASH, sys.executable, line],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("program", ["python run.py", "python3 -m tl_tf", "tl-tf"])
def test_bash_completes_modes_and_flags(program):
    assert ask_bash(f"{program} --mode=p") == ["profile", "predict"]
    assert ask_bash(f"{program} --mode=predict --mod") == ["--mode=", "--model_dir="]
    assert ask_bash(f"{program} --dry") == ["--dry_run"]


def test_bash_completes_recipes_in_any_folder(tmp_path):
    assert ask_bash("python run.py --gin_file=gin/") == RECIPES
    line = f"python {ROOT / 'run.py'} --mode=eval --gin_file=gin/quick"
    assert ask_bash(line, cwd=tmp_path) == ["gin/quickstart.gin"]


@pytest.mark.parametrize(
    "line",
    ["python run.py --input=", "python run.py --model_dir=r", "python run.py x"]
    + ["python other.py --mo", "python -m pytest --mo", "python ru"],
)
def test_bash_leaves_files_and_other_programs_alone(line):
    assert ask_bash(line) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_has_no_mistake_of_syntax(shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    command = [sys.executable, "-m", "tl_tf.completion", shell]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run([shell, "-n"], input=text, check=True)


def test_the_script_is_made_without_tensorflow():
    code = (
        "import sys; from tl_tf import completion; completion.script('bash');"
        " sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_another_shell_is_one_sentence():
    command = [sys.executable, "-m", "tl_tf.completion", "fish"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "completion: wanted bash or zsh, got 'fish'.\n"


def test_zsh_completes_at_its_prompt(tmp_path):
    zsh = shutil.which("zsh") or pytest.skip("zsh is not installed")
    terminal, end = pty.openpty()
    setup = f"""
    autoload -U compinit && compinit -D -u
    source <({sys.executable} -m tl_tf.completion zsh)
    PS1=ready.
    """
    (tmp_path / ".zshrc").write_text(setup)
    paths = {"ZDOTDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env = {"PATH": os.environ["PATH"], "TERM": "dumb", **paths}
    shell = subprocess.Popen(
        [zsh, "-d", "-i"], cwd=ROOT, env=env, stdin=end, stdout=end
    )
    shown = ""

    def read_until(text: str) -> None:
        nonlocal shown
        while text not in shown:
            assert select.select([terminal], [], [], 60)[0], shown
            shown += os.read(terminal, 1 << 16).decode()

    try:
        for line, want in (
            ("python run.py --gin_file=gin/quick", "--gin_file=gin/quickstart.gin "),
            ("tl-tf --mode=fews", "--mode=fewshot "),
            (f"python {ROOT}/run.py --dry", "--dry_run "),
        ):
            read_until("ready.")
            shown = ""
            os.write(terminal, f"{line}\t".encode())
            read_until(want)
            os.write(terminal, b"\x15\x0c")  # clears the line, shows the prompt anew
    finally:
        shell.kill()
        shell.wait()
        os.close(end)
        os.close(terminal)
