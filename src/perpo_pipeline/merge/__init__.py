"""`perpo merge`: a base model with its adapter merged in, in the hub's layout."""
