"""How does the scheduler serve others than Python: a gateway for any client, and a page to watch it on?"""
