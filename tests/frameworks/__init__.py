"""Each framework's line in the page on adoption, run against its newest release: `make frameworks`.

Not a part of `make test`: the modules have no names that pytest looks for, and are given by name
in environments of their own (see the Makefile).
"""
