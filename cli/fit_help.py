"""`cubelet fit --help` on one page, read from the sources: what can be set, its default, and how to see more."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from cubelet.common.shipped_files import PACKAGE

from .catalog import KINDS, ClassSource, ancestors, options_of, parse_classes, read_classes
from .config_files import last_value, read_configs, resolve_configs

DEFAULT_CLASSES = {
    "model": "cubelet.lightning_modules.LanguageModel",
    "data": "cubelet.datamodules.TextDataModule",
}
# The Trainer has forty options; these are the ones that experiments change.
TRAINER = {
    "max_steps": "optimizer steps",
    "val_check_interval": "batches between two validations, or a share of an epoch such as 0.5",
    "limit_val_batches": "batches of a validation; a share such as 0.1; 0 for none",
    "accumulate_grad_batches": "batches of an optimizer step",
    "gradient_clip_val": "largest norm of the gradient",
    "precision": "32-true, bf16-mixed, bf16-true, 16-mixed",
    "accelerator": "auto, cpu, gpu, mps",
    "devices": "1, another number, auto",
    "strategy": "auto, or --config strategy/ddp, --config strategy/fsdp2",
    "default_root_dir": "folder of the runs' folders",
    "log_every_n_steps": "steps between two values in the logs",
}
ALL = "--help-all"
PAGE = 150  # lines


def help_page(command: str, arguments: Sequence[str]) -> str:
    """Return the page for `cubelet COMMAND --help`.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        arguments: that stand beside it; configurations among them choose the classes of model and data.
    """
    arguments = resolve_configs([a for a in arguments if a not in ("-h", "--help")])
    configs = read_configs(arguments)
    lines = [
        f"usage: cubelet {command} [--config NAME_OR_FILE …] [--OPTION=VALUE …]",
        "",
        "  --config  a shipped configuration (cubelet list configs) or a file; later ones and options win. Without a",
        "            complete one, the default text experiment is below them",
    ]
    if command == "fit":
        lines += [
            "  --ckpt_path=last|best|FILE  continue a run",
            "  --run_name=NAME             its folder below --trainer.default_root_dir; default: the time it starts",
        ]
    else:
        lines += [
            "  --ckpt_path=last|FILE       of which run; default: last, the newest below --trainer.default_root_dir"
        ]
    lines += ["  --seed_everything=0         of weights and data order"]
    for section in ("model", "data"):
        chosen = str(last_value(f"{section}_class", arguments, configs) or DEFAULT_CLASSES[section])
        lines += ["", f"{section}: {chosen.rpartition('.')[2]} (another by --{section}_class=CLASS_PATH)"]
        lines += _options(section, chosen)
    lines += ["", "trainer: Lightning's Trainer, the most used"]
    lines += [_row(f"--trainer.{name}", text) for name, text in TRAINER.items()]
    lines += [
        "",
        "components: --model.rotary=QuaternionRotary, options behind it: --model.rotary.base=500. cubelet list shows",
        f"all; one's own options: cubelet {command} --model.rotary.help=cubelet.models.rotary.QuaternionRotary",
        "callbacks: --callbacks.SLOT=CLASS or null; --print_config shows the slots and the whole configuration",
        f"everything, thousands of lines: cubelet {command} {ALL}",
    ]
    return "\n".join(lines) + "\n"


def _options(section: str, class_path: str) -> Iterator[str]:
    name = class_path.rpartition(".")[2]
    classes = read_classes(PACKAGE / Path(KINDS[section][0]))
    if name not in classes:
        yield f"  of your own; cubelet fit {ALL} shows its options"
        return
    docs = argument_docs(name, classes)
    for option, default in options_of(name, classes).items():
        if section == "model" and option == "vocab_size":
            continue  # linked from the data
        yield _row(f"--{section}.{option}" + (f"={default}" if default else ""), docs.get(option, ""))


def argument_docs(name: str, classes: dict[str, ClassSource]) -> dict[str, str]:
    """Return {argument: first sentence} of the `Args:` of a class and its bases."""
    docs: dict[str, str] = {}
    for link in (name, *ancestors(name, classes)):
        found = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", classes[link].doc if link in classes else "", flags=re.M)
        body = textwrap.dedent(found[1]) if found else ""
        for names, text in re.findall(r"^([\w, ]+): (.*(?:\n[ \t]+.*)*)", body, flags=re.M):
            for each in names.split(", "):
                docs.setdefault(each, " ".join(text.split()))
    # What a model hands on to the decoder is told there.
    decoder = parse_classes(PACKAGE / "models/decoder.py", "cubelet.models.decoder") if name != "Decoder" else {}
    handed_on = [option for option, text in docs.items() if text.rstrip(".").endswith("see `Decoder`")]
    if handed_on and "Decoder" in decoder:
        docs |= {k: v for k, v in argument_docs("Decoder", decoder).items() if k in handed_on}
    return docs


def _row(option: str, text: str) -> str:
    first = re.split(r"(?<=[a-z)`0-9])[.;] ", text)[0].rstrip(".")
    room = 118 - 46
    first = first if len(first) <= room else f"{first[: room - 1].rstrip()}…"
    return f"  {option:<44}{first}".rstrip()
