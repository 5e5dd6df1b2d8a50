"""Nouns: values and their keys, with what they must be to be one. The standard library alone."""
