"""Work on images in a process of its own, so that what a format does wrong hurts that work and nothing else."""
