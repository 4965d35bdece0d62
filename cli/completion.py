"""`cubelet completion bash|zsh|fish|schema`: completion for a shell, and a JSON schema of configurations for editors.

Made from the sources like the lists, so both know what the installed version takes.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import cubelet
from cubelet.common.errors import ConfigError
from cubelet.common.shipped_files import PACKAGE, shipped_names

from .catalog import KINDS, read_classes
from .fit_help import argument_docs
from .option_checks import CALLBACK_SLOTS, known_options
from .suggestions import class_paths, kind_of_key, nearest

KINDS_OF_OUTPUT = ("bash", "zsh", "fish", "schema")
USAGE = """usage: cubelet completion bash|zsh|fish|schema

  bash, zsh  completion of commands, options and configurations:  eval "$(cubelet completion bash)"
  fish       the same:  cubelet completion fish | source
  schema     JSON schema of configurations:  cubelet completion schema > cubelet.schema.json
             and, in the first line of a file:  # yaml-language-server: $schema=cubelet.schema.json
"""
BASH = """_cubelet() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" choices
  COMPREPLY=()
  if [ "$before" = "=" ]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
  if [ "$COMP_CWORD" = 1 ]; then choices="COMMANDS"
  elif [ "$before" = --config ] || [ "$before" = -c ]; then
    choices="CONFIGS"; COMPREPLY=($(compgen -f -- "$word"))
  else case "${COMP_WORDS[1]}" in
    fit|validate|test|predict) choices="OPTIONS";;
    compare) choices="EXPERIMENTS"; COMPREPLY=($(compgen -f -- "$word"));;
    list) choices="SECTIONS";;
    new) choices="NEW";;
    *) COMPREPLY=($(compgen -f -- "$word"));;
  esac; fi
  COMPREPLY+=($(compgen -W "$choices" -- "$word"))
  case "${COMPREPLY[*]}" in *=) compopt -o nospace 2>/dev/null;; esac
}
complete -F _cubelet cubelet
"""
ZSH = """(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
autoload -U +X bashcompinit && bashcompinit
"""
FISH = """function __cubelet_is_first; test (count (commandline -opc)) -eq 1; end
function __cubelet_is_after; set -l words (commandline -opc); contains -- "$words[2]" $argv; end
function __cubelet_is_configured; set -l words (commandline -opc); contains -- "$words[-1]" --config -c; end
complete -c cubelet -f -n __cubelet_is_first -a "COMMANDS"
complete -c cubelet -f -n "__cubelet_is_after fit validate test predict; and not __cubelet_is_configured" -a "OPTIONS"
complete -c cubelet -n __cubelet_is_configured -a "CONFIGS"
complete -c cubelet -n "__cubelet_is_after compare" -a "EXPERIMENTS"
complete -c cubelet -f -n "__cubelet_is_after list" -a "SECTIONS"
complete -c cubelet -f -n "__cubelet_is_after new" -a "NEW"
"""


def completion_command(arguments: Sequence[str]) -> None:
    """Print what is asked for.

    Raises:
        ConfigError: none of `KINDS_OF_OUTPUT`.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return
    kind = arguments[0]
    if kind not in KINDS_OF_OUTPUT:
        near = nearest(kind, KINDS_OF_OUTPUT)
        hint = f"did you mean {near}?" if near else f"choose one of {', '.join(KINDS_OF_OUTPUT)}"
        raise ConfigError(f"cubelet completion knows no {kind!r}; {hint}")
    if kind == "schema":
        sys.stdout.write(json.dumps(schema(), indent=1) + "\n")
        return
    sys.stdout.write(fish_script() if kind == "fish" else (ZSH if kind == "zsh" else "") + bash_script())


def bash_script() -> str:
    """Return a completion function for bash, which zsh's `bashcompinit` runs, too."""
    return _with_words(BASH)


def fish_script() -> str:
    """Return completions for fish."""
    return _with_words(FISH)


def _with_words(script: str) -> str:
    """Return a script with what can be completed in place of "COMMANDS", "CONFIGS" and so on."""
    from .main import COMMANDS  # `main` imports this module only when it is asked for
    from .new_templates import TEMPLATES
    from .overview import SECTIONS

    known = known_options("fit", [], [])
    options = [f"--{name}=" for name in known[""] if name not in known]
    options += [f"--{section}.{name}=" for section, names in known.items() if section for name in names]
    words = {
        "COMMANDS": COMMANDS,
        "CONFIGS": shipped_names("configs"),
        "OPTIONS": ["--config", "--help", *options],
        "EXPERIMENTS": shipped_names("experiments"),
        "SECTIONS": SECTIONS,
        "NEW": TEMPLATES,
    }
    for name, choices in words.items():
        script = script.replace(f'"{name}"', f'"{" ".join(choices)}"')
    return script


def schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of what `--config` takes: names, descriptions and class paths."""
    known = known_options("fit", [], [])
    top: dict[str, Any] = {name: {} for name in known[""] if name not in ("config", *KINDS)}
    names = {"model": "LanguageModel", "data": "TextDataModule"}
    for section in ("trainer", "model", "data"):
        docs: dict[str, str] = {}
        if section in names:
            docs = argument_docs(names[section], read_classes(PACKAGE / KINDS[section][0]))
        properties = {name: describe(f"{section}.{name}", docs.get(name, "")) for name in known[section]}
        # Another model or data class has other options, and is not known here.
        top[section] = {"type": "object", "properties": properties, "additionalProperties": section != "trainer"}
    slots = {slot: describe(f"callbacks.{slot}", "") for slot in CALLBACK_SLOTS}
    top["callbacks"] = {"type": "object", "properties": slots, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"configuration of cubelet {cubelet.__version__}",
        "type": "object",
        "properties": top,
        "additionalProperties": False,
    }


def describe(key: str, text: str) -> dict[str, Any]:
    """Return the schema of one option: its description, and the class paths that it may name."""
    found: dict[str, Any] = {"description": text} if text else {}
    kind = kind_of_key(key)
    if kind is not None and not key.startswith("trainer."):
        paths = sorted(class_paths(kind).values())
        component = {"class_path": {"type": "string", "examples": paths}, "init_args": {"type": "object"}}
        found["anyOf"] = [
            {"type": "null"},
            {"type": "string", "examples": paths},
            {"type": "object", "properties": component, "required": ["class_path"]},
        ]
        if key in ("model.rotary", "model.block"):  # one for each layer
            found["anyOf"].append({"type": "array", "items": {"anyOf": list(found["anyOf"])}})
    return found
