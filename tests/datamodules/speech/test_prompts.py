"""The corpus prompts: read from where Debian's packages lie; the missing package is named."""

import gzip

import pytest

from cubelet.common.errors import MissingFileError
from cubelet.datamodules.speech.prompts import VOICES, load_prompts


def test_prompts_are_read_with_their_transcripts(tmp_path, write_sound):
    lines = ["; Core Sounds", "", "beep: [a beep]", "gone: Not recorded."]
    for n in range(40):
        write_sound(f"asterisk/sounds/{VOICES['ru']}/digits/{n}.wav", 1.0, 8000)
        lines.append(f"digits/{n}: Номер {n}, да!")
    table = tmp_path / "doc" / "asterisk-core-sounds-ru" / "core-sounds-ru.txt.gz"
    table.parent.mkdir(parents=True)
    table.write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig")))
    corpus = load_prompts(["ru"], tmp_path)
    everything = [*corpus.train, *corpus.held_out["texts"]]
    assert sorted(u.text for u in everything) == sorted(f"номер {n} да" for n in range(40))
    assert {u.samples for u in everything} == {16_000}
    assert corpus.left_out == {
        "no speech, or with remarks": ["core-sounds-ru.txt.gz:3"],
        "missing or unreadable": ["core-sounds-ru.txt.gz:4"],
    }


def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path):
    with pytest.raises(MissingFileError, match=r"apt-get install .*-fr asterisk-core-sounds-fr-wav"):
        load_prompts(["fr"], tmp_path)
    with pytest.raises(ValueError, match="languages 'de' is unknown"):
        load_prompts(["de"], tmp_path)
