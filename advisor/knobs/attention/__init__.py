"""Attention: which implementation computes softmax(QKᵀ)V. A family of choices is a file."""
