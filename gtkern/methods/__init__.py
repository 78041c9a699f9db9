"""Whole methods of papers, over the models: one module each."""
