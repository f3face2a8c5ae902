"""What does a shared budget cost in PostgreSQL? ``python -m benchmarks.postgres [--full]``.

A server is started for it, with fsync on, on the same machine; each worker is a process. Compared, in
one run: the store (`ours`: no provider, no scheduler), the same work as bare statements and nothing
else (`bare`), a ledger that reserves and settles each request by itself (`naive`), and a job queue
without any money (`queued`: procrastinate). `race` runs so many workers of one of them and reads the
gauges (`gauge`); `queues` puts ten millions in the queue, and ten thousand budgets in front of it.

Machines differ, and so do minutes: compare the CPU time, and the ratios.
"""
