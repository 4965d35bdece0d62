"""The installed package: what a wheel holds, what type checkers see of it, and that old names still lead somewhere."""

import importlib
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cubelet
from cubelet._moved import MOVED

ROOT = Path(__file__).parents[1]
USER_FILE = """\
from cubelet.models.sampling import sample

reveal_type(sample)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, env={**plain, **environment}
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the files that git knows (setuptools writes into the folder it builds from)."""
    copy = tmp_path_factory.mktemp("source") / "cubelet"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\n"):
        source = ROOT / name
        if name and name.split("/")[0] not in ("docs", "tests") and (source.is_symlink() or source.is_file()):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    said = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", out, copy, cwd=copy)
    found = list(out.glob("*.whl"))
    assert found, said
    return found[0]


def fresh_environment(folder: Path, *install: str | Path) -> Path:
    """A virtual environment with this one's packages and an installation of its own; returns its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    # Through a .pth of the environment: the .pth files of those packages (the editable install among them) stay unread.
    Path(packages, "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    said = run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *install, cwd=folder)
    assert "ERROR" not in said, said
    return python


def types_seen(python: Path, folder: Path) -> dict[str, str]:
    """What each type checker says of `sample` in a user's file."""
    (folder / "mine.py").write_text(USER_FILE)
    tools = Path(sys.executable).parent
    return {
        "pyright": run(tools / "pyright", "--pythonpath", python, "mine.py", cwd=folder),
        "mypy": run(
            tools / "mypy", "--python-executable", python, "--follow-imports=silent", "--cache-dir", folder / "cache",
            "mine.py", cwd=folder,
        ),
        "ty": run(tools / "ty", "check", "--python", python, "mine.py", cwd=folder),
    }  # fmt: skip


def assert_real_types(seen: dict[str, str]) -> None:
    for tool, said in seen.items():
        said = " ".join(said.split())
        assert "Tensor" in said.partition("logits")[2].partition(",")[0], f"{tool}: {said}"
        assert "Tensor" in said.partition("->")[2], f"{tool}: {said}"


@pytest.mark.slow
def test_type_checkers_see_the_real_types_from_a_wheel(wheel, tmp_path):
    python = fresh_environment(tmp_path / "environment", wheel)
    (tmp_path / "user").mkdir()
    assert "site-packages" in run(python, "-c", "import cubelet; print(cubelet.__file__)", cwd=tmp_path)
    assert_real_types(types_seen(python, tmp_path / "user"))


@pytest.mark.slow
def test_type_checkers_see_the_real_types_from_an_editable_install(tmp_path):
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", copy / "src", symlinks=True)
    for name in sorted(path.name for path in (ROOT / "src" / "cubelet").iterdir() if path.is_symlink()):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    python = fresh_environment(tmp_path / "environment", "-e", copy)
    (tmp_path / "user").mkdir()
    assert str(copy) in run(python, "-c", "import cubelet; print(cubelet.__file__)", cwd=tmp_path)
    assert_real_types(types_seen(python, tmp_path / "user"))


@pytest.mark.slow
def test_a_wheel_holds_every_module_the_configs_the_experiments_and_the_marker_of_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    rooms = [path for path in (ROOT / "src" / "cubelet").iterdir() if path.is_symlink()]
    files = [f for room in rooms for suffix in ("py", "yaml") for f in (ROOT / room.name).rglob(f"*.{suffix}")]
    expected = {f"cubelet/{f.relative_to(ROOT)}" for f in files}
    assert expected - names == set()
    assert {"cubelet/__init__.py", "cubelet/__main__.py", "cubelet/py.typed"} <= names
    stray = {n for n in names if not n.startswith(("cubelet/", f"cubelet-{cubelet.__version__}"))}
    assert stray == set()  # nothing called `models` or `tests` lands in anybody's site-packages


@pytest.mark.slow
def test_a_checkout_without_links_says_what_to_do(tmp_path):
    """Git on Windows writes a link as a text file that holds its target."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "src" / "cubelet"
    package.mkdir(parents=True)
    for path in (ROOT / "src" / "cubelet").iterdir():
        if path.is_symlink():
            (package / path.name).write_text(os.readlink(path))
        elif path.is_file():
            shutil.copy(path, package)
    said = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path / "out", tmp_path, cwd=tmp_path)
    assert "git config core.symlinks true" in said
    assert not list((tmp_path / "out").glob("*.whl"))


def test_the_version_has_one_source():
    from importlib.metadata import version

    assert version("cubelet") == cubelet.__version__
    assert cubelet.__version__ not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_of_an_older_version_leads_to_the_same_objects(old):
    module = importlib.import_module(f"cubelet.{old}")
    for place in MOVED[old]:
        new = importlib.import_module(f"cubelet.{place}")
        for name, value in vars(new).items():
            if str(getattr(value, "__module__", "")).startswith("cubelet."):
                assert getattr(module, name) is value
                break
        else:
            pytest.fail(f"{place} defines nothing")
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_this_name'"):
        module.nothing_of_this_name  # noqa: B018


def test_rooms_imported_from_the_root_do_not_clash_with_the_package():
    """`from models.decoder import Decoder` beside `cubelet.models.decoder`: custom operators are registered once."""
    code = "import cubelet.models.decoder, models.decoder, models.rotary, callbacks, optimizers, datamodules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
