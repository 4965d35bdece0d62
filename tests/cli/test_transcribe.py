"""`cubelet transcribe`: texts, times and subtitles from a checkpoint; wrong calls are one line."""

import json

import numpy as np
import pytest
import soundfile
import torch

from cubelet.cli.main import main
from cubelet.cli.transcribe import clock, cues
from cubelet.datamodules.speech import SpeechTokenizer, read_audio
from cubelet.lightning_modules import LanguageModel, SpeechRecognizer
from cubelet.lightning_modules.transcripts import Transcript, Word
from tests.lightning_modules.test_speech_recognizer import save_checkpoint, small


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(small(), tmp_path / "model.ckpt")


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    names = []
    for n, (seconds, rate) in enumerate([(1.0, 16_000), (0.4, 8_000), (0.05, 44_100)]):
        names.append(str(tmp_path / f"{n}.wav"))
        soundfile.write(names[-1], 0.3 * draw.standard_normal(round(seconds * rate)), rate)
    return names


def test_each_file_is_a_line_of_json_with_the_text_it_has_alone(checkpoint, files, capsys):
    main(["transcribe", *files, f"--ckpt_path={checkpoint}", "--format=jsonl", "--timestamps"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = SpeechRecognizer.load_from_checkpoint(checkpoint)
    assert [row["file"] for row in rows] == files
    assert rows[0]["text"]
    for row in rows:
        (alone,) = model.transcribe_words([read_audio(row["file"])])
        assert row["text"] == alone.text == " ".join(word["word"] for word in row["words"] or [{"word": alone.text}])
        assert row["seconds"] == pytest.approx(len(read_audio(row["file"])) / 16_000, abs=1e-3)
        for word, after in zip(row["words"], row["words"][1:], strict=False):
            assert 0 <= word["start"] < word["end"] <= after["start"]


def test_text_subtitles_and_files(checkpoint, files, tmp_path, capsys):
    main(["transcribe", files[0], f"--ckpt_path={checkpoint}"])
    alone = capsys.readouterr().out
    main(["transcribe", *files, f"--ckpt_path={checkpoint}"])
    assert capsys.readouterr().out.splitlines()[0] == f"{files[0]}\t{alone.strip()}"
    main(["transcribe", *files, f"--ckpt_path={checkpoint}", "--format=srt", f"--output_dir={tmp_path / 'out'}"])
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.srt", "1.srt", "2.srt"]
    if alone.strip():
        assert "00:00:0" in (tmp_path / "out" / "0.srt").read_text()


def test_subtitles_end_at_pauses_and_lengths():
    words = [Word("a", 0.0, 0.5), Word("b", 0.6, 1.0), Word("c", 2.0, 2.5), Word("d" * 70, 2.6, 3.0)]
    words += [Word("e", 3.1 + n, 3.2 + n) for n in (0, 1)]
    assert [(start, end, text[:3]) for start, end, text in cues(Transcript("", words))] == [
        (0.0, 1.0, "a b"),
        (2.0, 2.5, "c"),
        (2.6, 3.0, "ddd"),
        (3.1, 3.2, "e"),
        (4.1, 4.2, "e"),
    ]
    assert clock(0.0004) == "00:00:00,000"
    assert clock(3599.9996) == "01:00:00,000"


def test_wrong_calls_are_one_line(checkpoint, files, tmp_path, capsys):
    language_model = tmp_path / "text.ckpt"
    model = LanguageModel(20, dims=32, layers=1, heads=2)
    torch.save({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, language_model)
    wrong = {
        "there is no audio file nothing.wav": ["nothing.wav", f"--ckpt_path={checkpoint}"],
        "holds no SpeechRecognizer": [files[0], f"--ckpt_path={language_model}"],
        "give --output_dir=FOLDER": [*files, f"--ckpt_path={checkpoint}", "--format=srt"],
        "does not exist": [files[0], "--ckpt_path=nowhere.ckpt"],
        "batch_seconds 0": [files[0], f"--ckpt_path={checkpoint}", "--batch_seconds=0"],
        "format": [files[0], f"--ckpt_path={checkpoint}", "--format=pdf"],
    }
    for message, arguments in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            main(["transcribe", *arguments])
        told = capsys.readouterr().err.strip()
        assert message in told
        assert len(told.splitlines()) == 1
    assert SpeechTokenizer("ab").vocab_size == 5
