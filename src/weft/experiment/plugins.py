"""Methods from outside the package: entry points of the group ``weft.methods``, and files named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import weft.methods
from weft.core.errors import SettingError


def load_methods(files: tuple[str, ...] = ()) -> None:
    """Fill the registry: the package's own methods, those of installed packages, and those of these files.

    Raises:
        SettingError: a plug-in is missing or cannot be imported.
    """
    for module in pkgutil.iter_modules(weft.methods.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"weft.methods.{module.name}")
    for point in entry_points(group="weft.methods"):
        try:
            point.load()
        except Exception as error:
            raise SettingError(f"the plug-in {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    for file in files:
        _load_file(Path(file))


class _Source(SourceFileLoader):
    """A file of the user's, beside which no bytecode is written."""

    def set_data(self, *told: Any, **more: Any) -> None:
        pass


def _load_file(path: Path) -> None:
    name = f"weft_plugin_{path.stem}"
    source = _Source(name, str(path)) if path.is_file() and path.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(name, path, loader=source) if source else None
    if spec is None or spec.loader is None:
        raise SettingError(f"plugin = {path} is no Python file: give the path of a file that registers a method")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(f"plugin = {path} cannot be loaded: {type(error).__name__}: {error}") from error
