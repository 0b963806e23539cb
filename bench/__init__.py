"""Measures the service side by side with what else one could have written: `python -m bench`."""
