"""Exact readers of a reply's text: rules that always give the same answer, and can be read and argued with.

A reader says whether a text shows something: a language, a format, a person, a length. It is described in
YAML by a name, or by one rule with its argument (`reader_of`):

    check: pirate
    check: {words: {max: 20}}
    check: {all: [french, {not: numbered list}]}

Readers are strict. Text too short to tell, half of it in another manner, or one word over and over shows
nothing: that is what a model steered too far writes, and it must not count as a success.
"""

from ksteer_vllm.data.readers.description import NAMED, RULES, Reader, reader_of
from ksteer_vllm.data.readers.words import broken

__all__ = ["NAMED", "RULES", "Reader", "broken", "reader_of"]
