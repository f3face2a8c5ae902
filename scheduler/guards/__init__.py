"""What keeps that which is outside from breaking what is inside?

`plain` and `texts`: words of others, where they are shown and where they are stored. `hooks`:
functions of a user's own. `contexts`: blocks that somebody else ends. `signals`: the wish of a
system that a process ends. `installed`: another project's files in this package's folder.
"""
