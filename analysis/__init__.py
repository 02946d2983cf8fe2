"""What the trials say: fronts, plots, choice and export."""
