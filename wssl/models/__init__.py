"""Encoders, heads and their momentum copies."""
