"""Whole models: adapting, merging and selecting across every layer inside."""
