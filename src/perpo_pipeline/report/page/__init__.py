"""The HTML page: `page.html` is the template, one module per section computes what it shows."""
