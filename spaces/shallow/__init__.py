"""Narrower or shorter towers of their own for the shallow levels."""
