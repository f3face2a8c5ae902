"""Batch files: lines in, result lines out.

`input` reads what people have (one reader, opened once), `results` says how outcomes are
written, `files` owns the files they are written to.
"""
