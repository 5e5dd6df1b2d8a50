"""Advice: what stored trials come to. The candidates in their order, the answer, and why it is not another."""
