"""What is shown of the results: tables, charts, and the page of the documentation."""
