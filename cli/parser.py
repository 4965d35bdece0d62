"""LightningCLI's parser, whose errors are exceptions of one line."""

import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from cubelet.common.errors import ConfigError

from .suggestions import did_you_mean

# Lines of a parser error about the alternatives of a type rather than about the value.
NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Problem with given class_path",
    "Parser key",
)


class UsageError(ConfigError):
    """An option, key or value that the parser refuses."""


class Parser(LightningArgumentParser):
    """LightningArgumentParser that raises `UsageError` where the library prints its usage and exits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `--model.dim` for `--model.dims` would change its meaning with the next option that begins alike.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        names = [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]
        hint = did_you_mean(message, names)
        raise UsageError(f"{innermost_complaint(message)}; {hint or 'cubelet fit --help shows all options'}") from ex


def innermost_complaint(message: str) -> str:
    """Return one line for a nested parser error: the key, the value, and the innermost complaint about it.

    jsonargparse reports every alternative of a union type it tried, outermost first and indented; the most indented
    line that speaks of the value is the one that names the fault.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    key = next((m[1] for line in lines if (m := re.search(r'Parser key "([^"]+)"', line))), None)
    told = [line for line in lines if not line.strip(" -").startswith(NOISE)] or lines[-1:]
    depth = max(len(line) - len(line.lstrip(" -")) for line in told)
    fault = next(line.strip(" -") for line in told if len(line) - len(line.lstrip(" -")) == depth)
    # Of several alternatives, one that knew the class and not the option says most. (torch's Module stands for none.)
    refusals = [line for line in told if "class_path='torch.nn.Module'" not in line]
    if found := re.search(r"Option '\w+' is not accepted", "\n".join(refusals)):
        fault = found[0]
    fault = re.sub(r"^Type .* expects a function or a callable class: ", "", fault)
    fault = re.sub(r"<class '([\w.]+)'>", r"\1", fault)
    nested = re.search(r"Given value: NestedArg\(key='([^']+)'", message)
    if key and nested and fault == f"Expected a dot import path string: {nested[1]}":  # taken for the component itself
        return f"{key} names no class whose {nested[1]} could be set; write --{key}=CLASS before it, a list as a whole"
    # What follows "Got value: Namespace(…" repeats the whole component.
    value = next((m[1] for line in lines if (m := re.search(r"Given value: ([^\s(]*[^\s(.])", line))), None)
    text = fault if key is None or key in fault else f"{key}: {fault}"
    if value is None or value in text or value.lstrip("[") in ("Namespace", "NestedArg"):
        return text
    return f"{text} (got {value})"
