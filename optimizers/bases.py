"""The updates by name: what `base=` of FAM may be, and MaxFactor's own."""

from .factored import Factored, FactoredMomentum
from .updates import AdamW, Momentum

BASES: dict[str, Momentum] = {"momentum": Momentum(), "adamw": AdamW(), "maxfactor": FactoredMomentum()}
PLAIN_MAXFACTOR = "maxfactor_without_momentum"
UPDATES: dict[str, Momentum] = {**BASES, PLAIN_MAXFACTOR: Factored()}
