"""run.py, data.build and data.verify, from wherever the package is installed.

tl-tf --gin_file=gin/quickstart.gin
tl-tf build folder --videos_dir=my_videos --name=mine --data_dir=datasets
tl-tf verify datasets/mine

`python -m tl_tf` is the same.  What a checkout keeps beside the package, a wheel keeps
in tl_tf/program, out of the way of other people's modules.
"""

import runpy
import sys

from tl_tf import config

PROGRAMS = {"build": "data.build", "verify": "data.verify"}


def main() -> None:
    """Runs the program that the first argument names, run.py where it names none."""
    sys.path.insert(0, str(config.ROOT))
    module = PROGRAMS.get("".join(sys.argv[1:2]), "run")
    if module != "run":
        del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
