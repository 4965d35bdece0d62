"""Models do not ask about the machine: that is what models/kernels/ is for."""

import ast
from pathlib import Path

MODELS = Path(__file__).parents[2] / "models"
ASKS = {
    "autocast",
    "enable_grad",
    "forward_ad",
    "get_num_threads",
    "inference_mode",
    "is_autocast_enabled",
    "is_compiling",
    "is_cpu",
    "is_cuda",
    "is_dynamo_compiling",
    "is_exporting",
    "is_grad_enabled",
    "is_inference",
    "is_mps",
    "is_tracing",
    "mkldnn",
    "set_grad_enabled",
}
ALLOWED = {"rotary": 8, "embeddings": 0, "": 15}


def asking_lines(path):
    """Numbers of the lines of code in which device kind, compiler, gradients or autocast are asked for."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        device = name == "type" and "device" in ast.unparse(node)
        if name in ASKS or device:
            yield node.lineno


def test_few_lines_outside_kernels_ask_about_the_machine():
    found = {
        f"{path.relative_to(MODELS)}:{line}"
        for path in MODELS.rglob("*.py")
        if "kernels" not in path.parts
        for line in asking_lines(path)
    }
    for room, most in ALLOWED.items():
        here = sorted(line for line in found if line.startswith(room))
        assert len(here) <= most, here
