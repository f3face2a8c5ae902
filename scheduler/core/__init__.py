"""The shell: the only code that awaits, and the life of a request in it.

intake    what is asked becomes something to queue (`aliases`, `deployments`, `declared`)
pump      the one task that owns every change of state: it turns the store's wheel
flight    the calls under way; `calls` makes one, `tries` remembers the earlier ones
future    what the caller holds; `stream` and `mapping` of many
callers/  who waits for which request, on which terms
nested/   calls within calls, and whose place they take
resolver  finds out what became of calls nobody heard back from
shell     all of it together; `governing`, `tagging` are its other methods, `ending` its end
"""
