"""A candidate in another process: its arguments go there, and only its answers come back.

A check that calls learner's code in its own process can be rebound by it. `Remote` stands for a
function of the learner in the process of the check: it sends the arguments to the process where
the function lives, and returns what comes back. That is data, read by `decode`, which builds
tensors, numbers, texts and containers of them and never runs anything. So the other process may
give a wrong answer, but no verdict.

What cannot travel (a network, an optimizer) lives where the function lives: the engine then sends
the whole evaluation of a case there (`Remote.evaluate`), and compares the answer here.
"""

from __future__ import annotations

import base64
import functools
import io
import marshal
import pickle
import pkgutil
import sys
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shipyard.checks import Elsewhere

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
        torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip
NUMPY_KINDS = "biufc"  # no objects: those would have to be unpickled


class CannotTravel(Exception):  # noqa: N818  (it says what happened)
    """The value is no data, so it cannot be sent to another process."""


class Raised(Exception):  # noqa: N818
    """The learner's function raised, or its process sent no answer that can be read."""


class Unwritten(Raised, NotImplementedError):  # noqa: N818
    """The learner's function is still the stub."""


# --- values as JSON -----------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Any], dict]) -> Any:
    """``value`` as what JSON can hold. What is no data is given to ``keep``, which names it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in NUMPY_KINDS:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: [value.dtype.str, list(value.shape), _text(value.tobytes())]}
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), _text(data)]}
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    return keep(value)


def decode(value: Any, kept: Callable[[int], Any]) -> Any:
    """The value that `encode` wrote; ``kept`` gives what a name of ``keep`` stands for.

    Raises:
        Exception: of any kind, where ``value`` was not written by `encode`.
    """
    if isinstance(value, list):
        return [decode(item, kept) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "kept":
        return kept(int(content))
    if kind == "complex":
        return complex(*content)
    if kind == "tuple":
        return tuple(decode(item, kept) for item in content)
    if kind == "dict":
        return {decode(k, kept): decode(v, kept) for k, v in content}
    name, shape, text = content
    data = bytearray(base64.b64decode(text))
    if kind == "tensor":
        dtype = DTYPES[name]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.reshape(_shape(shape))
    dtype = np.dtype(name)
    if kind not in ("array", "scalar") or dtype.kind not in NUMPY_KINDS:
        raise ValueError(f"no such kind of value: {kind} {name}")
    array = np.frombuffer(data, dtype).reshape(_shape(shape))
    return array if kind == "array" else array[()]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"no shape: {sizes}")
    return tuple(sizes)


# --- where the check is -------------------------------------------------------------------------

Ask = Callable[[dict, list], dict]


class Remote(Elsewhere):
    """An object of the learner's process, seen from the check's.

    Args:
        number: the name that the other process gave to it.
        ask: ``ask(request, lent)`` returns the reply of the other process; ``lent`` holds the
            functions of this process that it may call meanwhile, by their place in the list.
    """

    def __init__(self, number: int, ask: Ask):
        self.number, self.ask = number, ask

    def __deepcopy__(self, memo: dict) -> Remote:
        return self

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call it with data, or with functions, which the other process then calls back.

        Raises:
            CannotTravel: an argument is neither.
            Raised: the function raised.
        """
        lent: list[Callable] = []
        given = encode([list(args), options], functools.partial(_lend, lent))
        return self._answer({"do": "call", "number": self.number, "given": given}, lent)

    def evaluate(self, use: Callable | None, function: Callable, args: tuple, options: dict) -> Any:
        """``use(function, *args, **options)``, done in the other process with the real function.

        ``function`` is this object, or one that calls it.
        """
        file = io.BytesIO()
        try:
            _Parcel(file).dump((use, function, args, options))
        except Exception as error:
            raise CannotTravel(f"this case cannot be sent to another process: {error}") from error
        return self._answer({"do": "evaluate", "parcel": _text(file.getvalue())}, [])

    def _answer(self, request: dict, lent: list) -> Any:
        return read_reply(self.ask(request, lent), self.ask)


def read_reply(reply: dict, ask: Ask) -> Any:
    """The value in a reply.

    Raises:
        Raised: the reply tells of an exception, or is none that can be read.
    """
    if "error" in reply:
        name, text = map(str, reply["error"])
        raise (Unwritten if name == "NotImplementedError" else Raised)(f"{name}: {text}")
    try:
        return decode(reply["value"], lambda number: Remote(number, ask))
    except Exception as error:
        raise Raised(f"its answer cannot be read ({type(error).__name__})") from error


def _lend(lent: list, value: Any) -> dict:
    if isinstance(value, Remote):
        return {"kept": value.number}
    if callable(value) and not isinstance(value, torch.nn.Module | type):
        lent.append(value)
        return {"kept": -len(lent)}  # below zero: lent by the check
    raise CannotTravel(f"a {type(value).__name__} cannot be sent to another process")


class _Parcel(pickle.Pickler):
    """Pickles functions that stand inside others too, and names remote objects."""

    def persistent_id(self, value: Any) -> int | None:
        return value.number if isinstance(value, Remote) else None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, FunctionType) or _is_importable(value):
            return NotImplemented
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        code = marshal.dumps(value.__code__)
        names = (value.__module__, value.__name__)
        return _function, (code, names, value.__defaults__, value.__kwdefaults__, cells)


def _is_importable(function: FunctionType) -> bool:
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _function(code: bytes, names: tuple, defaults: tuple, named: dict, cells: tuple) -> Callable:
    module, name = names
    scope = vars(pkgutil.resolve_name(module))
    function = FunctionType(marshal.loads(code), scope, name, defaults, (*map(CellType, cells),))
    function.__kwdefaults__ = named
    return function


# --- where the learner's code is ------------------------------------------------------------------


class _Passing(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return operation(*args, **(kwargs or {}))


def warm_up() -> None:
    """Import what PyTorch imports late: a check with a time limit must not pay for it."""
    with _Passing():
        torch.ones(1) * 2


class Served:
    """The learner's side: its objects by number, and the requests of a `Remote` answered."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def keep(self, value: Any) -> dict:
        """A name for an object that cannot travel."""
        self.objects.append(value)
        return {"kept": len(self.objects) - 1}

    def encode(self, value: Any) -> Any:
        """``value`` as JSON, with names for what cannot travel."""
        return encode(value, self.keep)

    def answer(self, request: dict, call_back: Callable[[int, Any], Any]) -> dict:
        """Do what is asked; the reply holds the value or the exception.

        ``call_back(place, encoded arguments)`` calls a function that the check lent, and returns
        its encoded result.
        """

        def known(number: int) -> Any:
            if number >= 0:
                return self.objects[number]

            def lent(*args: Any, **options: Any) -> Any:
                return decode(call_back(-number - 1, self.encode([list(args), options])), known)

            return lent

        try:
            if request["do"] == "call":
                args, options = decode(request["given"], known)
                value = known(request["number"])(*args, **options)
            else:
                use, function, args, options = _Opened(request["parcel"], known).load()
                value = (use or _call)(function, *args, **options)
            return {"value": self.encode(value)}
        except BaseException as error:  # exit() inside a function is an answer too
            return {"error": [type(error).__name__, str(error)[:2000]]}


class _Opened(pickle.Unpickler):
    def __init__(self, text: str, known: Callable[[int], Any]):
        super().__init__(io.BytesIO(base64.b64decode(text)))
        self.persistent_load = known


def _call(function: Callable, *args: Any, **options: Any) -> Any:
    return function(*args, **options)
