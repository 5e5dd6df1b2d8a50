"""Faces: what is asked for, by flags and by keywords, becomes one question, and the verbs that answer it are called."""
