"""Whole models: adding and merging adapters, finding layers, and selecting tasks and ranks."""
