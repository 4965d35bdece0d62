import pytest

from cubelet.common.errors import ConfigError, DiskError, MissingFileError, UnreadableFileError, UserError
from cubelet.common.optional_imports import MissingExtraError, import_optional


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigError, ValueError),
        (MissingFileError, FileNotFoundError),
        (UnreadableFileError, OSError),
        (DiskError, OSError),
        (MissingExtraError, ImportError),
    ],
)
def test_errors_for_users_are_also_what_a_caller_in_python_expects(kind, builtin):
    error = kind("what is wrong and what to do")
    assert isinstance(error, UserError)
    assert isinstance(error, builtin)
    assert str(error) == "what is wrong and what to do"


def test_an_optional_package_is_imported_or_its_extra_named():
    assert import_optional("json.decoder").JSONDecoder
    with pytest.raises(MissingExtraError, match=r"this needs nosuchpackage: pip install 'cubelet\[sweep\]'"):
        import_optional("nosuchpackage.part", "sweep")
