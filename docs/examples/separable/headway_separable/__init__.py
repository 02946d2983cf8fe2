"""Depthwise-separable convolutions in the head's towers."""
