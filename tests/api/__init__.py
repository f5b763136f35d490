"""Tests of REST and of the `vstore` command."""
