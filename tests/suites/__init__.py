"""The SDKs' own test suites, run bare and adopted: whoever adopts us should notice nothing else.

`make suites` takes each suite as its SDK published it, runs it three times (bare, with every client
wrapped, and instrumented) and says which tests came out otherwise. See `__main__`.
"""
