"""Box heads on automatically discovered key parts of objects, for two-stage detectors."""
