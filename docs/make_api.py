"""API pages of the library: python -m docs.make_api DIR, then open DIR/index.html.

Made by pdoc, whose warnings are errors here, with our own lines of a docstring (Shapes,
Source, Differs) set apart.
"""

import argparse
import pkgutil
import re
import warnings
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import pdoc  # noqa: E402

import tl_tf  # noqa: E402

_CODE = re.compile(r"(`[^`]*`|\n\n    .*(?:\n(?:    .*)?)*)")
_LINE = re.compile(
    r"^(Shapes|Source|Differs|Args|Returns): (\S.*(?:\n[ \t]+.+)*)", re.M
)


def markdown(docstring: str) -> str:
    """Our docstrings as Markdown, but for the lists that pdoc makes of Args and Raises.

    They mean a < and a * as they stand, and a line each of Shapes, Source and Differs.
    """
    parts = _CODE.split(docstring)  # plain, code, plain, ...
    parts[::2] = [p.replace("<", "&lt;").replace("*", r"\*") for p in parts[::2]]

    def paragraph(found: re.Match) -> str:
        name, text = found[1], " ".join(found[2].split())
        if name == "Shapes":
            text = "`" + text.replace("`", "").replace("\\", "") + "`"
        return f"\n**{name}:** {text}\n"

    return _LINE.sub(paragraph, "".join(parts))


def make(folder: Path) -> None:
    """Writes the pages; raises what pdoc would warn of."""
    sections = pdoc.docstrings.google
    pdoc.docstrings.google = lambda docstring: sections(markdown(docstring))
    pdoc.render.configure(docformat="google", include_undocumented=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        pdoc.pdoc(*modules(), output_directory=folder)


def modules() -> list[str]:
    """The package, and what its __all__ does not list: the modules in it."""
    inside = [m.name for m in pkgutil.iter_modules(tl_tf.__path__, "tl_tf.")]
    return ["tl_tf", *(name for name in inside if name != "tl_tf.__main__")]


def main() -> None:
    """Reads the folder's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
