"""Twins of layers that users have: the same signature, parameters and numbers, over the ops."""
