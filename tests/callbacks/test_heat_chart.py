"""Pictures of matrices: where cells, axes and colour bars stand, as pixels and as SVG."""

import re

import numpy as np

from cubelet.callbacks.heat_chart import Axes, axis_marks, framed_map, heat_chart, mean_columns

AXES = Axes("optimizer steps", "angle (rad)", (0, 200), (0.0, 3.0), "share", "planes")


def test_a_pixel_picture_has_its_cells_within_axes_and_a_bar():
    picture = framed_map([[0.0, 1.0], [2.0, 3.0]], AXES)
    assert picture.dtype == np.uint8
    assert (picture[:28, -1] == 255).all()  # paper
    cells = picture[28 : 28 + 240, 86 : 86 + 520].astype(int).sum(-1)
    assert cells[200, 100] == cells.min()  # row 0 at the bottom
    assert cells[50, 400] == cells.max()
    bar = picture[28 : 28 + 240, 86 + 520 + 14].astype(int).sum(-1)
    assert bar[0] > bar[-1]
    below, beside = picture[28 + 240 :, 86 : 86 + 520], picture[:, :80]
    assert (below < 128).any()
    assert (beside < 128).any()


def test_an_svg_has_labels_units_and_a_path_for_each_colour():
    text = heat_chart([[0.0, 1.0], [2.0, float("nan")]], AXES)
    assert 'aria-label="planes: angle (rad) over optimizer steps"' in text
    assert text.count("<path") == 3
    assert "M0 1h1v1h-1z" in text  # the first row lies at the bottom
    for mark in (">100<", ">1<", ">share<"):
        assert mark in text
    assert heat_chart([[float("nan")]], AXES) == heat_chart(np.zeros((0, 3)), AXES) == ""


def test_neighbours_of_one_colour_are_one_piece():
    text = heat_chart([[1.0, 1.0, 1.0, 0.0]], AXES)
    assert re.findall(r'd="([^"]*)"', text) == ["M3 0h1v1h-1z", "M0 0h3v1h-3z"]


def test_marks_are_numbers_or_the_texts_of_the_cells_and_axes_may_run_down():
    assert axis_marks(("x", "y", "z"), 3) == [(0.5, "x"), (1.5, "y"), (2.5, "z")]
    assert axis_marks((10, 0), 10, 3) == [(10.0, "0"), (5.0, "5"), (0.0, "10")]
    assert axis_marks((2, 2), 4) == [(2.0, "2")]


def test_many_columns_become_means_of_neighbours():
    assert mean_columns(np.array([[1.0, 3.0, 5.0, 7.0]]), 2).tolist() == [[2.0, 6.0]]
