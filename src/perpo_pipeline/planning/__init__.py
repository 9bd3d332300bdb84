"""`perpo plan`: what a run will take and make, before anything is made."""
