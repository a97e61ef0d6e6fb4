"""The documentation: Markdown pages for Sphinx, and what makes pages from the code."""
