"""One line out of the parser's nested messages."""

from cubelet.cli.parser import innermost_complaint

UNION = """Parser key "model.rotary":

  - Expected a path but RoPEE either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [collections.abc.Callable[[int, int], torch.nn.modules.module.Module], <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: RoPEE
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: RoPEE"""


def test_the_innermost_complaint_is_told():
    assert innermost_complaint(UNION) == "model.rotary: Expected a dot import path string: RoPEE"
    told = innermost_complaint("Parser key \"a.b\":\n  Expected a <class 'int'>. Got value: x")
    assert told == "a.b: Expected a int. Got value: x"
    assert innermost_complaint("unrecognized arguments: --x=1") == "unrecognized arguments: --x=1"
