"""Load generator and reports: `python -m bench`, explained in README.md beside this file."""
