"""Components read from the sources are those that importing finds."""

import importlib
import inspect

import pytest

from cubelet.cli.catalog import KINDS, find_component, read_components, trainer_options


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_sources_say_is_what_importing_gives(kind):
    components = [c for c in read_components()[kind] if c.is_public]
    assert components or kind == "embedding"
    for component in components:
        module, _, name = component.class_path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert component.summary
        assert " ".join(inspect.getdoc(found).partition("\n\n")[0].split()) == component.summary
        parameters = inspect.signature(found).parameters.values()
        named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        assert named <= set(component.options), component.name


def test_options_passed_on_to_a_base_are_listed():
    assert {"rotations", "base", "dims"} <= set(find_component("CombinedRotary").options)
    assert find_component("cubelet.models.rotary.CombinedRotary").kind == "rotary"
    assert find_component("Nothing") is None


def test_the_trainers_options_are_read_from_lightning():
    import lightning as L

    assert set(trainer_options()) == set(inspect.signature(L.Trainer).parameters)
