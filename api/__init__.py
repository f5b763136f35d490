"""HTTP and the command line of vstore: parse, call one Store verb, answer."""
