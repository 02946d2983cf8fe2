"""What may vary: design families as knobs (data) and patches (pure functions) of a base config."""
