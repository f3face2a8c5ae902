"""Ways for a request to leave; see `base` for the contract."""
