"""Deformable convolutions in the head's towers."""
