"""Quantization: in how many bits the weights are. A library that quantises is a file."""
