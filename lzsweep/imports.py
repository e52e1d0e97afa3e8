"""Imports of others that take seconds, and how to leave out what nobody here asked them for."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold Python's garbage collector back while much is imported.

    Modules are no garbage, but it looks at all of them again and again, for a third of the time.
    """
    was_enabled = gc.isenabled()  # by another thread that imports, it is not
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def stand_in(name: str, module: ModuleType | None) -> Iterator[None]:
    """Put another module in the place of one while others are imported.

    Args:
        name: of the module; where it is imported already, it stays.
        module: what they get; with None the module is as if it was not installed.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]  # None is the import system's own word
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]


def import_lightning() -> None:
    """Do as `import pytorch_lightning`, in half of its time.

    The other half is torch's compiler and matplotlib. Lightning wants of the one a class to ask
    whether a module is compiled, torch's optimizers a mark that it shall not compile them;
    torchmetrics wants names for its plots. While the compiler is not imported nothing is compiled,
    so all that is answered without it. Whoever asks for more gets the real modules.
    """
    if "pytorch_lightning" not in sys.modules:
        with no_collection():
            _import_lightning()


def _import_lightning() -> None:
    import torch

    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = torch._dynamo = _compiler()
        sys.meta_path.insert(0, _Parts(COMPILER))
    # All that torchmetrics wants of this one is to add the name `hamming`, for a package that few
    # have.
    signal = ModuleType("scipy.signal")
    signal.hamming = None  # type: ignore[attr-defined]
    with ExitStack() as stack:
        for module in (signal, *_matplotlib()):
            stack.enter_context(stand_in(module.__name__, module))
        import pytorch_lightning  # noqa: F401


def import_mlflow_client() -> None:
    """Do as `import mlflow.tracking.client`, in a third of the time that `import mlflow` takes.

    The rest is MLflow's judges of language models and their web framework, which it imports for
    everybody, and pandas, which the client names in annotations. A process that only talks to a
    server asks for neither; whoever does gets the real ones.
    """
    if "mlflow" not in sys.modules:
        with no_collection():
            _import_mlflow_client()


def _import_mlflow_client() -> None:
    _make_hollow("mlflow", __version__=version("mlflow"))  # sent with each request
    for name in ("mlflow.genai", "mlflow.models", "mlflow.projects"):
        _make_hollow(name)
    _make_hollow("mlflow.models.model", MLMODEL_FILE_NAME="MLmodel")  # to know it for a text
    frames = {name: _class_of("pandas", name) for name in ("DataFrame", "Series")}
    with stand_in("pandas", _Later("pandas", **frames)):
        for name in _CLIENT:
            importlib.import_module(name)
    sys.meta_path.insert(0, _Parts("mlflow"))


_CLIENT = (
    "mlflow.tracking.client",
    "mlflow.tracking.request_header.registry",
    "mlflow.projects._project_spec",
)
"""What MLflow imports by and by until a run is delivered."""


def has_compiler() -> bool:
    """Whether torch's compiler is imported, so that something may be compiled."""
    return COMPILER in sys.modules and not _is_later(COMPILER)


class _Hollow(ModuleType):
    """A module whose own code runs when something is asked of it that is not known without it.

    It stays the same object, and if it is a package, its parts can be imported before.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__} has no {name} before its code has run")
        part = f"{self.__name__}.{name}"
        if PathFinder.find_spec(part, self.__dict__.get("__path__", [])):
            importlib.import_module(part)
        else:
            self.load()
        return getattr(self, name)

    def load(self) -> None:
        with _loading:
            above = sys.modules.get(self.__name__.rpartition(".")[0])
            if isinstance(above, _Hollow):
                above.load()  # its code comes first, and may ask for this
            if isinstance(self, _Hollow):
                assert self.__spec__ and self.__spec__.loader
                self.__class__ = ModuleType  # type: ignore[assignment]
                self.__spec__.loader.exec_module(self)
                for name, module in list(sys.modules.items()):
                    if name.startswith(f"{self.__name__}.") and isinstance(module, _Hollow):
                        module.load()


_loading = threading.RLock()


def _make_hollow(name: str, **known: object) -> None:
    above, _, own = name.rpartition(".")
    spec = PathFinder.find_spec(name, sys.modules[above].__path__ if above else None)
    assert spec
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    module.__dict__.update(known)
    module.__class__ = _Hollow
    if above:
        setattr(sys.modules[above], own, module)


class _Later(ModuleType):
    """A module that is imported when something is asked of it that is not known without it."""

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        self.__dict__.update(known)
        self.__path__: list[str] = []  # its parts are found by `_Parts`
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        # To look at all modules, as `inspect` does, is no reason to import one.
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"{self.__name__} has no {name} before it is imported")
        return getattr(_real(self.__name__), name)

    def load(self) -> None:
        _real(self.__name__)


class _Parts(MetaPathFinder, Loader):
    """Loads a module first where a part of it is imported while it is not all there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        module = sys.modules.get(self._name)
        if not name.startswith(f"{self._name}.") or not isinstance(module, (_Hollow, _Later)):
            return None
        module.load()
        if name not in sys.modules:
            return importlib.util.find_spec(name)
        self._spec = sys.modules[name].__spec__  # the whole has imported it
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _ClassOf(type):
    """A class that stands for one of a module; nothing is of it before the module is imported."""

    place: tuple[str, str]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        name, attribute = cls.place
        return getattr(_real(name), attribute)(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        name, attribute = cls.place
        if name not in sys.modules or _is_later(name):
            return False
        return isinstance(instance, getattr(sys.modules[name], attribute))


def _is_later(name: str) -> bool:
    return isinstance(sys.modules.get(name), _Later)


def _real(name: str) -> ModuleType:
    if _is_later(name):
        del sys.modules[name]
    return importlib.import_module(name)


def _class_of(module: str, name: str) -> type:
    return _ClassOf(name, (), {"place": (module, name)})


def _compiler() -> _Later:
    def graph_break(*args: Any, **kwargs: Any) -> None:
        if not _is_later(COMPILER):
            _real(COMPILER).graph_break(*args, **kwargs)

    def disable(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        if fn is None or not _is_later(COMPILER):
            return _real(COMPILER).disable(fn, *args, **kwargs)
        marked: list[Callable[..., Any]] = []

        def call(*inputs: Any, **named: Any) -> Any:
            if _is_later(COMPILER):
                return fn(*inputs, **named)
            if not marked:
                marked.append(_real(COMPILER).disable(fn, *args, **kwargs))
            return marked[0](*inputs, **named)

        return call

    optimized = _class_of(COMPILER, "OptimizedModule")
    return _Later(COMPILER, OptimizedModule=optimized, disable=disable, graph_break=graph_break)


def _matplotlib() -> tuple[_Later, ...]:
    @contextmanager
    def context(style: object) -> Iterator[None]:
        with _real("matplotlib.pyplot").style.context(style):
            yield

    axes = _Later("matplotlib.axes", Axes=_class_of("matplotlib.axes", "Axes"))
    figure = _class_of("matplotlib.figure", "Figure")
    plots = _Later("matplotlib.pyplot", Figure=figure, style=SimpleNamespace(context=context))
    colors = _Later("matplotlib.colors", Colormap=_class_of("matplotlib.colors", "Colormap"))
    return _Later("matplotlib", axes=axes, pyplot=plots, colors=colors), axes, plots, colors
