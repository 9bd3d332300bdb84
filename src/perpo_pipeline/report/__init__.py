"""`perpo report`: one self-contained HTML page that shows what training changed.

The modules here read the artifacts of a run into plain data; `page/` turns the data into HTML.
"""
