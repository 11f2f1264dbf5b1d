"""The limits of the analysis: beyond each of them the answer is "unknown", never a guess."""

from __future__ import annotations

VALUE_DEPTH = 12  # bindings and calls followed from a value to where it comes from
CHOICE_STEPS = 500  # the same for one question about a choice, all ways together
CHOICE_BINDINGS = 50  # of one name
TEXT_DEPTH = 8  # names followed to the strings that a text is made of
ALIAS_DEPTH = 8  # names followed to a callable of the package
QUOTE_DEPTH = 4  # annotations in strings, inside one another
CONSTANT_DEPTH = 6  # from-imports followed to a constant
NAME_CHANGES = 20  # times that the names of a module change, as they do where modules import from one another
ROUNDS = 20  # a name that is handed on through more modules is not followed to its end
PROJECT_FILES = 20_000  # above it only the folders that were given are looked at

PARSED_BYTES = 2**20  # of a file for Python's own parser; 0.3 seconds
PARSED_OPERATORS = 50_000  # a chain of twice as many overflows the stack of Python 3.10
CODE_CHARACTERS = 2**22  # of code that is looked into
NOTEBOOK_BYTES = 2**26  # of a notebook around it
LOOKUP_BYTES = 2**22  # of a file that is searched for names looked up while it runs
DATA_BYTES = 10 * 2**20  # of a data file that is searched
