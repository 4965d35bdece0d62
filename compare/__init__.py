"""`cubelet compare`: paired runs of variants against a baseline, and an honest table.

`experiment` reads a file, `runs` composes its runs, `processes` does them, `tune` picks settings on other seeds,
`runner` leads through all of it, `statistics` gives the words, `report` and `figures` show them; `command` is the
command line. What is measured of a run is a callback, `cubelet.callbacks.run_metrics`.
"""

from cubelet.callbacks.run_metrics import RunMetrics as Measures  # its name in 0.1.0

__all__ = ["Measures"]
