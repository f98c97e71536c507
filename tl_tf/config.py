"""Gin files: checked before TensorFlow is imported, loaded after it.

A gin file is code: it names the functions that are called and the modules that are
imported.  Run only files that you trust.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import logging
import os
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gin
from gin import config_parser

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "program"  # where a wheel keeps run.py, gin/ and data/

ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent

MAX_CHARACTERS = 1_000_000  # of a gin file; ours have a few thousand
_loaded: dict[str, tuple[str, ...]] = {}
_MACRO = re.compile(r"[A-Z][A-Z0-9_]*")


class ConfigError(ValueError):
    """A mistake in a gin file or binding; its text is one sentence for the user."""


def check(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> None:
    """Finds the mistakes that need no TensorFlow to be seen.

    These are missing files, syntax, unknown functions and parameters, macros that are
    referred to and not set, and macros that are set and never referred to.

    Raises:
      ConfigError: naming the file and line, the mistake, and what is known instead.
    """
    reader = _Reader(_configurables())
    for path in gin_files:
        reader.read_file(path, included_by=None)
    for text in gin_bindings:
        reader.read(text, where=f"--gin_bindings={text!r}")
    for name, where in reader.referred.items():
        if name not in reader.macros:
            raise ConfigError(
                f"{where}: %{name} is not set. Set it in the recipe, or with"
                f" --gin_bindings='{name} = ...'."
            )
    for name, where in reader.macros.items():
        if name not in reader.referred:
            raise ConfigError(
                f"{where}: {name} is set, but nothing refers to %{name}."
                + _closest(name, reader.referred)
            )


def load(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> None:
    """Parses gin files and bindings into gin's registry; call `check` first.

    Raises:
      ConfigError: with gin's own words.
    """
    gin.add_config_file_search_path(str(ROOT))
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # gin logs each place where it looks in vain
    try:
        gin.parse_config_files_and_bindings(
            [str(_find(path)) for path in gin_files], list(gin_bindings)
        )
    except (ValueError, TypeError, SyntaxError, ImportError, RuntimeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        logging.disable(before)
    _loaded.update(gin_files=tuple(gin_files), gin_bindings=tuple(gin_bindings))


def loaded() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `load` was last called with: gin files and bindings."""
    return _loaded.get("gin_files", ()), _loaded.get("gin_bindings", ())


@contextlib.contextmanager
def registers_nothing() -> Iterator[None]:
    """What is imported inside makes nothing configurable.

    Model Garden has a build_optimizer too: a recipe's own would be ambiguous, and a
    recipe that was loaded allows no new names.
    """

    def unchanged(*arguments, **_):
        is_bare = bool(arguments) and callable(arguments[0])
        return arguments[0] if is_bare else lambda function: function

    register, gin.configurable = gin.configurable, unchanged
    try:
        yield
    finally:
        gin.configurable = register


def unused(is_expected: Callable[[str], bool]) -> list[str]:
    """Bindings that were set and that no call has used so far.

    Args:
      is_expected: whether the function of this name (as `train/clip_dataset`, its scope
        first) should have been called by now; bindings of others are passed over.

    Returns:
      `scope/function.parameter` of each, in the order of the configuration.
    """
    # Gin has no public view of both tables; config_str and operative_config_str print
    # them, and values may span lines there.
    configured = gin.config._CONFIG
    operative = gin.config._OPERATIVE_CONFIG
    names = []
    for (scope, selector), parameters in configured.items():
        if selector == "gin.macro":
            continue
        function = selector.split(".")[-1]
        scoped = f"{scope}/{function}" if scope else function
        if not is_expected(scoped):
            continue
        used = {
            parameter
            for (used_scope, used_selector), values in operative.items()
            if used_selector == selector
            and (not scope or used_scope == scope or used_scope.startswith(scope + "/"))
            for parameter in values
        }
        names += [f"{scoped}.{p}" for p in parameters if p not in used]
    return names


def checksum() -> str:
    """SHA-256 of the parsed configuration, its first 12 hexadecimal digits."""
    return hashlib.sha256(gin.config_str().encode()).hexdigest()[:12]


class _Reference(config_parser.ParserDelegate):
    """Notes the functions and macros that a statement refers to."""

    def __init__(self):
        self.functions: list[str] = []
        self.macros: list[str] = []

    def configurable_reference(self, scoped_name, evaluate):
        self.functions.append(scoped_name)
        return scoped_name

    def macro(self, name):
        self.macros.append(name)
        return name


@dataclasses.dataclass
class _Reader:
    known: dict[str, set[str]]
    macros: dict[str, str] = dataclasses.field(default_factory=dict)
    referred: dict[str, str] = dataclasses.field(default_factory=dict)
    open_files: tuple[Path, ...] = ()

    def read_file(self, path: str, *, included_by: str | None) -> None:
        try:
            found = _find(path)
        except ConfigError as error:
            raise ConfigError(
                f"{included_by}: {error}" if included_by else str(error)
            ) from None
        if found in self.open_files:
            raise ConfigError(f"{included_by}: {path} includes itself.")
        self.open_files += (found,)
        try:
            with found.open(encoding="utf-8") as file:
                text = file.read(MAX_CHARACTERS + 1)
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as text ({error}).") from None
        self.read(text, where=path)
        self.open_files = self.open_files[:-1]

    def read(self, text: str, *, where: str) -> None:
        reference = _Reference()
        parser = config_parser.ConfigParser(text, reference)
        while True:
            try:
                statement = next(parser, None)
            except (
                SyntaxError,
                ValueError,
                TypeError,
                tokenize.TokenError,
                RecursionError,
                MemoryError,  # what Python's parser calls brackets that are too deep
            ) as error:
                line = getattr(error, "lineno", None)
                what = error.args[0] if error.args else type(error).__name__
                raise ConfigError(
                    f"{where}{f', line {line}' if line else ''}: cannot be read as gin"
                    f" ({' '.join(str(what).split()):.300})."
                ) from None
            if statement is None:
                return
            at = where
            if not where.startswith("--"):
                at = f"{where}, line {statement.location.line_num}"
            self._statement(statement, at=at)
            for name in reference.functions:
                self._function(name.split("/")[-1], at=at)
            for name in reference.macros:
                if name != "gin.REQUIRED":
                    self.referred.setdefault(name, at)
            reference.functions.clear()
            reference.macros.clear()

    def _statement(self, statement, *, at: str) -> None:
        if isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename, included_by=at)
        elif isinstance(statement, config_parser.BindingStatement):
            if statement.arg_name:
                parameters = self._function(statement.selector, at=at)
                if statement.arg_name not in parameters:
                    raise ConfigError(
                        f"{at}: {statement.selector} has no parameter"
                        f" {statement.arg_name!r}."
                        + _closest(statement.arg_name, parameters)
                    )
            elif not _MACRO.fullmatch(statement.selector):
                raise ConfigError(
                    f"{at}: {statement.selector!r} is neither function.parameter nor a"
                    " macro, whose name is UPPER_CASE."
                )
            else:
                self.macros[statement.selector] = at

    def _function(self, selector: str, *, at: str) -> set[str]:
        name = selector.split(".")[-1]
        if name not in self.known:
            raise ConfigError(
                f"{at}: there is no configurable function {selector!r}."
                + _closest(name, self.known)
            )
        return self.known[name]


def _find(path: str) -> Path:
    """A gin file by its path, or by its path from the repository root."""
    for candidate in (Path(path), ROOT / path):
        if os.path.isfile(candidate):  # of any length, unlike Path's own method
            return candidate.resolve()
    recipes = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/*.gin"))
    raise ConfigError(f"{path}: no such gin file. Recipes here: {', '.join(recipes)}.")


@functools.cache
def _configurables() -> dict[str, set[str]]:
    """Every @gin.configurable function below tl_tf/ and its parameters, by syntax."""
    known = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).startswith("gin.configurable")
                for d in node.decorator_list
            ):
                arguments = node.args
                known[node.name] = {
                    a.arg
                    for a in (
                        *arguments.posonlyargs,
                        *arguments.args,
                        *arguments.kwonlyargs,
                    )
                }
    return known


def _closest(name: str, known) -> str:
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if matches:
        return f" Did you mean {matches[0]!r}?"
    return f" Known: {', '.join(names)}."
