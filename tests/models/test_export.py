"""Exported decoders run where this package is not installed."""

import subprocess
import sys

import pytest
import torch

from cubelet.models.decoder import Decoder
from cubelet.models.rotary import CombinedRotary, RoPE
from tests.reference.nudge import nudge

RUN = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
assert not any(name.split(".")[0] in ("cubelet", "models") for name in sys.modules)
"""


def decoder(rotary):
    torch.manual_seed(0)
    return nudge(Decoder(50, 32, 1, 2, rotary=rotary)).eval()


def tokens(b, s):
    return torch.randint(50, (b, s), generator=torch.Generator().manual_seed(s))


def export(model):
    dynamic = {"tokens": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    return torch.export.export(model, (tokens(2, 9),), dynamic_shapes=dynamic)


@pytest.mark.slow
def test_a_saved_program_runs_without_this_package(tmp_path):
    model, x = decoder(RoPE), tokens(3, 70)
    torch.export.save(export(model), tmp_path / "program.pt2")
    torch.save(x, tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("program.pt2", "x.pt", "y.pt")]
    done = subprocess.run([sys.executable, "-c", RUN, *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(torch.load(paths[2]), model(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rotary", [RoPE, CombinedRotary])
def test_onnx_gives_the_same_logits(rotary, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="extra `bench` is not installed")
    pytest.importorskip("onnxscript", reason="extra `bench` is not installed")
    model, x = decoder(rotary), tokens(3, 70)
    model.merge()  # ONNX has no inverse of a matrix, which R is made with
    path = tmp_path / "decoder.onnx"
    torch.onnx.export(export(model), (), path, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), model(x), atol=1e-4)
