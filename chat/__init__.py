"""Talking to what was trained."""
