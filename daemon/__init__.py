"""perdure's request daemon: HTTP in, provider out; and the command line."""
