"""Shared code of the notebooks; README.md lists the modules in the order in which they build on each other."""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, for widgets that nobody here needs
