"""One trial: a detector config in; accuracy, cost and speed out. Knows mmdet, never ray."""
