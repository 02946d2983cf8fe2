"""Learned dilations in the backbone and in the towers."""
