"""Data that the demo trains on."""
