"""Whole disks moved, compared and restructured, offline: what `vstore file` and the daemon's jobs call."""
