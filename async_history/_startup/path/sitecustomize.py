"""Calls `async_history.mem0.install()` as soon as a program has imported mem0.

Python imports this module when it starts, from the folder that `async-history run` puts into
PYTHONPATH. If the program has a `sitecustomize`, it runs too. A program without mem0 is not
changed.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType

_OURS = "async_history.mem0"


class _Watcher(MetaPathFinder):
    """Watches for imports of mem0 and of our package, which imports mem0."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module with the other finders."""
        if name not in ("mem0", _OURS):
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _WatchedLoader(spec.loader)
                return spec
        return None


class _WatchedLoader(Loader):
    """Loads a watched module, whose `__loader__` stays the original one."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module with the original loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and install our classes when both packages are imported."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if module.__name__ == _OURS:
            module.install()
        else:
            _import_ours()


def _import_ours() -> None:
    """Import our package, whose own loader installs; nothing if it is being imported already."""
    try:
        importlib.import_module(_OURS)
    except ModuleNotFoundError as error:
        if error.name != "async_history":
            raise
        raise ImportError(
            f"async-history run: {sys.executable} has mem0 and not async_history. Install it "
            "there too"
        ) from error


def _run_the_programs_own() -> None:
    """Run the `sitecustomize` that Python would have imported without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec(__name__, sys.path)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _Watcher())
_run_the_programs_own()
