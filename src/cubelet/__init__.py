"""cubelet: decoders whose position encoding, attention and optimizer are experiments, with PyTorch Lightning.

The rooms of the package are real folders at the root of the repository; this folder holds links to them, so that an
editable install is a plain path which editors and type checkers follow.
"""

from ._moved import install_finder

__version__ = "0.2.0.dev0"

install_finder()
