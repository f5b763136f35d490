"""Tests of the store: verbs, crash rules and the supervisor, over a fake target process that starts in a blink."""
