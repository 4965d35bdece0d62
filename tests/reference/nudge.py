"""Parameters moved away from their initial values; see `cubelet.testing.subject`."""

from cubelet.testing.subject import nudge

__all__ = ["nudge"]
