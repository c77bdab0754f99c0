"""Weights and data of other implementations."""
