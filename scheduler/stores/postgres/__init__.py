"""How do machines share one queue and one ledger? In a PostgreSQL database: `store.PostgresStore`.

Where it is: `address`. A connection, and a transaction on it: `link`, `connection`, `dialect`,
`schema`. What happens when an answer is lost: `session`. Threads: `hand`, `ears`; time: `clock`.
"""
