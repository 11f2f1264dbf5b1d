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

# The rule that a call of each name belongs to.
RULE_OF: dict[str, str] = {
    CLASS: hier001.RULE.id,
    CONFIG: hier002.RULE.id,
    PRESETS: hier002.RULE.id,
    CREATE_BLOCK_SPARSE: hier003.RULE.id,
    CREATE_ATTENTION: hier004.RULE.id,
    FACTORY: hier005.RULE.id,
    PRESET: hier006.RULE.id,
    PATTERN: hier007.RULE.id,
}
