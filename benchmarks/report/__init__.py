"""The results as tables, as charts, and as a page of the documentation."""
