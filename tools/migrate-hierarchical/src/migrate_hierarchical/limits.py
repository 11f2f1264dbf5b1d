"""The limits of the analysis: beyond each of them the answer is "unknown", never a guess."""

from __future__ import annotations

VALUE_DEPTH = 12  # bindings and calls followed from a value to where it comes from
CHOICE_STEPS = 500  # steps for one question about a choice, over all paths
CHOICE_BINDINGS = 50  # bindings of one name
TEXT_DEPTH = 8  # names followed to the strings that make up a text
ALIAS_DEPTH = 8  # names followed to a callable of the package
QUOTE_DEPTH = 4  # string annotations nested in one another
CONSTANT_DEPTH = 6  # from-imports followed to a constant
NAME_CHANGES = 20  # updates of a module's names where modules import from one another in a circle
ROUNDS = 20  # a name that is passed on through more modules is not followed to its end
PROJECT_FILES = 20_000  # above it, only the given folders are searched

PARSED_BYTES = 2**20  # of a file for Python's own parser; takes 0.3 seconds
PARSED_OPERATORS = 50_000  # a chain of twice as many overflows the stack of Python 3.10
CODE_CHARACTERS = 2**22  # of code that is indexed
NOTEBOOK_BYTES = 2**26  # of a notebook with such code
LOOKUP_BYTES = 2**22  # of a file that is searched for names looked up at run time
DATA_BYTES = 10 * 2**20  # of a data file that is searched
