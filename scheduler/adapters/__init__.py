"""How other people's code plugs in: SDK clients, HTTP clients, functions, threads, web apps."""
