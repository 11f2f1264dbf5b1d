"""The rewriting rules, one per file, and the reasons why a use is left to a person."""

from ..names import CLASS, CONFIG, CREATE_ATTENTION, CREATE_BLOCK_SPARSE, FACTORY, PATTERN, PRESET, PRESETS
from . import hier001, hier002, hier003, hier004, hier005, hier006, hier007, hier008, hier009
from .base import Decide, Rule

RULES: tuple[Rule, ...] = tuple(
    module.RULE
    for module in (hier001, hier002, hier003, hier004, hier005, hier006, hier007, hier008, hier009)
)

DECIDERS: dict[str, Decide] = {
    CLASS: hier001.decide,
    CONFIG: hier002.decide,
    PRESETS: hier002.decide,
    CREATE_BLOCK_SPARSE: hier003.decide,
    CREATE_ATTENTION: hier004.decide,
    FACTORY: hier005.decide,
    PRESET: hier006.decide,
    PATTERN: hier007.decide,
}
