"""Calls `async_history.mem0.install()` as soon as a program has imported mem0.

Python imports this as it starts, from the folder that `async-history run` puts into PYTHONPATH. The
program's own `sitecustomize`, if it has one, runs too. A program without mem0 is not changed.
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
    """Watches for the import of mem0, and of our package, which imports mem0 itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module as the other finders do."""
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
    """Loads a watched module, and leaves its own loader in it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and install ours when both packages are there."""
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
