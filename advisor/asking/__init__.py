"""Asking: what may be asked, as values of Python's own types, and the verbs that answer it. Faces and the daemon share them."""
