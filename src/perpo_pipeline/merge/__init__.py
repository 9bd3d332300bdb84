"""`perpo merge`: a base model with its adapter folded in, in the hub's layout."""
