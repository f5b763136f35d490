"""Tests with a real Linux guest: Debian's cloud kernel under QEMU uses the disks that vstore serves."""
