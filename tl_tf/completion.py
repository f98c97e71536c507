"""Completion of modes, recipes and flags in bash and zsh.

source <(python -m tl_tf.completion bash)

In ~/.bashrc, or with `zsh` in ~/.zshrc after compinit, it completes `python run.py`,
`python -m tl_tf` and `tl-tf`.  The script is made from the flags of run.py and the
recipes there are; completing starts no Python.
"""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator

from absl import flags

from tl_tf import config

BASH = r"""
_tl_tf() {
  local line=${COMP_LINE:0:COMP_POINT} word words
  word=${line##*[[:space:]]}
  case $word in
@CASES@
    --*=*) return ;; # files
    -*) words="@FLAGS@" ;;
    *) return ;;
  esac
  [[ $word == *=* ]] && word=${word#*=} # = begins a word in bash
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
}

_tl_tf_python() {
  if [[ ${COMP_WORDS[1]} -ef @ROOT@/run.py ]] ||
    [[ ${COMP_WORDS[*]:1:2} == "-m tl_tf" ]]; then
    _tl_tf "$@"
  elif declare -F _completion_loader >/dev/null; then # bash-completion's own
    _completion_loader "$1"
    local own=$(complete -p "$1")
    complete -o bashdefault -o default -F _tl_tf_python "$1"
    own=${own##*-F } own=${own%% *}
    [[ $own == _tl_tf_python ]] || "$own" "$@"
  fi
}

complete -o bashdefault -o default -F _tl_tf tl-tf run.py
complete -o bashdefault -o default -F _tl_tf_python python python3
"""

ZSH = r"""
_tl_tf() {
  _arguments \
@ARGUMENTS@
}

_tl_tf_recipe() {
  compadd @RECIPES@ || _files -g '*.gin'
}

_tl_tf_python() {
  if [[ $words[2] -ef @ROOT@/run.py ]]; then
    shift words; (( CURRENT -= 1 ))
  elif [[ $words[2] == -m && $words[3] == tl_tf ]]; then
    shift 2 words; (( CURRENT -= 2 ))
  else
    _python "$@"
    return
  fi
  _tl_tf "$@"
}

compdef _tl_tf tl-tf run.py
compdef _tl_tf_python python python3
"""

VALUES = {"checkpoint": ["newest", "best"]}


def script(shell: str) -> str:
    """The completion script for "bash" or "zsh".

    Raises:
      ValueError: for another shell.
    """
    if shell not in ("bash", "zsh"):
        raise ValueError(f"completion: wanted bash or zsh, got {shell!r}.")
    sys.path.insert(0, str(config.ROOT))
    importlib.import_module("run")
    known = flags.FLAGS.flags_by_module_dict()["run"]
    recipes = sorted(f"gin/{path.name}" for path in config.ROOT.glob("gin/*.gin"))
    if shell == "bash":
        text = BASH.replace("@CASES@", "\n".join(_bash_cases(known, recipes)))
        names = (f"--{flag.name}{'' if flag.boolean else '='}" for flag in known)
        text = text.replace("@FLAGS@", " ".join(names))
    else:
        arguments = " \\\n".join(_zsh_argument(flag) for flag in known)
        text = ZSH.replace("@ARGUMENTS@", arguments)
        text = text.replace("@RECIPES@", " ".join(recipes))
    return text.replace("@ROOT@", shlex.quote(str(config.ROOT))).lstrip()


def _values(flag: flags.Flag) -> list[str]:
    return getattr(flag.parser, "enum_values", None) or VALUES.get(flag.name, [])


def _bash_cases(known: list[flags.Flag], recipes: list[str]) -> Iterator[str]:
    for flag in known:
        words = recipes if flag.name == "gin_file" else _values(flag)
        if words:
            yield f'    --{flag.name}=*) words="{" ".join(words)}" ;;'


def _zsh_argument(flag: flags.Flag) -> str:
    about = re.sub(r"([\[\]:])", r"\\\1", flag.help.split(">: ")[-1].split(";\n")[0])
    if flag.boolean:
        return "    " + shlex.quote(f"--{flag.name}[{about}]")
    if flag.name == "gin_file":
        values = "_tl_tf_recipe"
    elif _values(flag):
        values = f"({' '.join(_values(flag))})"
    else:
        values = "_files"
    repeat = "*" if isinstance(flag, flags.MultiFlag) else ""
    return "    " + shlex.quote(f"{repeat}--{flag.name}=[{about}]:{flag.name}:{values}")


if __name__ == "__main__":
    try:
        print(script("".join(sys.argv[1:])), end="")
    except ValueError as error:
        sys.exit(str(error))
