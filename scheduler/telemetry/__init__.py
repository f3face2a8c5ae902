"""What does a scheduler tell of itself, and to whom?

`picture` is what there is to be seen, gathered once, for the command line, metrics and pages alike;
`prometheus` and `otel` tell monitoring systems, `webhooks` people and programs that wait for news. Nothing
of this is loaded before it is asked for.
"""
