"""One line for what went wrong while a configuration was instantiated: key, value, complaint, fix.

The key is found from the exception's trace: constructors that ran are matched with the classes that the configuration
names, innermost first, and the argument among theirs that the complaint speaks of is the one to blame.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jsonargparse import Namespace

from cubelet.common.errors import UserError

from .errors import disk_fault, fault_place, frames_of, is_library, is_package, reasons


class Entry(NamedTuple):
    """A component of the configuration: its key, class, and arguments with the keys that set them."""

    key: str
    class_path: str
    arguments: dict[str, Any]


def describe_failure(error: BaseException, config: Namespace, defaults: Namespace) -> str:
    """Return one line with key, value and fix.

    Args:
        error: what instantiating `config` raised.
        config: of one subcommand.
        defaults: the parser's.
    """
    if (fault := disk_fault(error)) is not None:
        return fault
    chain = reasons(error)
    cause = next((link for link in chain if isinstance(link, UserError)), chain[-1])
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        blamed = _named_in(config, chain) or "a component of the configuration"
        return f"{blamed} needs the package {cause.name}, which is not installed: pip install {cause.name}"
    message = " ".join(str(cause).split()) or type(cause).__name__
    if not isinstance(cause, UserError | ValueError | RuntimeError | TypeError) or isinstance(cause, UnicodeError):
        message = f"{type(cause).__name__}: {message}"
    blamed = blame(cause, config)
    text = ", ".join(f"{key}={_show(value)}" for key, value in blamed.items())
    names_itself = any(message.startswith(f"{key.rpartition('.')[2]}: ") for key in blamed)  # "corpus: a.txt is …"
    text = f"{text}: {message}" if text and not names_itself else message
    if len(blamed) == 1 and not names_itself:
        key, value = next(iter(blamed.items()))
        default = defaults.get(key)
        if isinstance(default, str | int | float) and default != value:
            text += f"; the default is {default}"
    place = fault_place(cause)
    if place and _is_user_code(cause):
        text += f" ({place}; CUBELET_TRACEBACK=1 shows the whole trace)"
    return text


def blame(cause: BaseException, config: Namespace) -> dict[str, Any]:
    """Return {key: value} of the arguments that a complaint speaks of; of the component where it names none."""
    message = str(cause)
    first: dict[str, Any] = {}
    listed = list(entries(config))
    for frame in reversed(frames_of(cause.__traceback__)):
        name = _constructed(frame)
        for entry in listed:
            if name is None or entry.class_path.rpartition(".")[2] != name:
                continue
            named = {k: v for k, v in entry.arguments.items() if re.search(rf"\b{re.escape(k)}\b", message)}
            shown = {k: v for k, v in named.items() if str(v) in message} or named
            if shown:
                return {f"{entry.key}.{k}": v for k, v in list(shown.items())[:3]}
            first = first or {entry.key: entry.class_path}
    return first


def entries(config: Namespace) -> Iterator[Entry]:
    """Yield the components of a configuration: the model, the data, the trainer, and every class path below."""
    yield Entry("model", str(config.get("model_class", "")), dict(vars(config.model)))
    yield Entry("data", str(config.get("data_class", "")), dict(vars(config.data)))
    yield Entry("trainer", "Trainer", dict(vars(config.trainer)))
    yield from _below("", config)


def _below(prefix: str, value: Any) -> Iterator[Entry]:
    if isinstance(value, Namespace):
        if isinstance(value.get("class_path"), str):
            arguments = value.get("init_args")
            arguments = dict(vars(arguments)) if isinstance(arguments, Namespace) else {}
            yield Entry(prefix, value["class_path"], arguments)
            value = value.get("init_args") or Namespace()
        for key, below in vars(value).items():
            yield from _below(f"{prefix}.{key}" if prefix else key, below)
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _below(prefix, below)


def passes_through(error: BaseException, function: str) -> bool:
    """Return whether the trace of `error` goes through a function of this name."""
    return any(frame.f_code.co_name == function for frame in frames_of(error.__traceback__))


def _constructed(frame: Any) -> str | None:
    """Name of the class whose constructor, or of the function, that a frame runs; None for other frames."""
    if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
        # The class that defines this `__init__` may be a base of the one that is built.
        return type(frame.f_locals["self"]).__name__
    return frame.f_code.co_name


def _named_in(config: Namespace, chain: list[BaseException]) -> str:
    """The first component that the messages of a chain of reasons name, as key=class."""
    text = " ".join(str(link) for link in chain)
    return next((f"{e.key}={e.class_path}" for e in _below("", config) if e.class_path in text), "")


def _is_user_code(cause: BaseException) -> bool:
    """Whether the innermost frame is the user's own: then the place helps more than the words."""
    frames = frames_of(cause.__traceback__)
    file = inspect.getfile(frames[-1]) if frames else "<"
    return not (is_library(file) or is_package(file))


def _show(value: Any) -> str:
    if isinstance(value, Namespace):
        return str(value.get("class_path", "…"))
    return str(value)
