"""How does work come in that nobody stays on the line for?

As files of requests (OpenAI's ``/v1/files`` and ``/v1/batches``, Anthropic's message batches) and as
responses in the background. All of it is kept in the store: the requests as any others of a job, which
is called like the batch, so a gateway that is stopped or killed goes on with them when it comes back,
and others on the same store do meanwhile.

`lines`, `members` and `forms` are pure: what is asked, and what is told. `record` is what is kept of a
batch, `shelf` keeps files, `reader` brings their lines into the queue, `keeper` brings batches on, and
`files`, `batches`, `messages` and `background` are what is served, through `door`.
"""
