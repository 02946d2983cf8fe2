"""DDOD: separate assignments for classification and regression, losses reweighted by pyramid level."""
