"""Seed: the advice that this project grew from, tuned and told."""
