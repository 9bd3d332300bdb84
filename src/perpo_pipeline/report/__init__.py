"""`perpo report`: one self-contained HTML page that shows what training changed."""
