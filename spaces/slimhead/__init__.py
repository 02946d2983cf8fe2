"""SlimHead: shrink shallow levels before the head's towers, restore them before the predictions."""
