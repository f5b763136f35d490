"""One file per REST resource: parse, call one Store verb, answer."""
