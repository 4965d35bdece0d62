"""Fast paths can be switched off by name or together, nested, and come back on."""

from cubelet.models.kernels import formulas_only, use_fast_path


def test_fast_paths_are_switched_off_inside_the_block_only():
    assert use_fast_path("rms_norm")
    with formulas_only("rms_norm"):
        assert not use_fast_path("rms_norm")
        assert use_fast_path("short_conv")
        with formulas_only():
            assert not use_fast_path("short_conv")
        assert use_fast_path("short_conv")
        with formulas_only("rms_norm"):
            pass
        assert not use_fast_path("rms_norm")
    assert use_fast_path("rms_norm")
