"""How fast a budget is spent, and how far over it, under several rules of admission; simulated."""
