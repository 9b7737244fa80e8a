"""Shared code of the notebooks; README.md lists the modules in the order in which they build on each other."""
