"""The command `scheduler`: one module a command, data on stdout, narration on stderr."""
