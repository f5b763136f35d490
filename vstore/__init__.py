"""vstore: a virtual storage target; Python decides, C moves bytes."""
