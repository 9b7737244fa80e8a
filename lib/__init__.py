"""The shared rooms of the companion; README.md lists them."""

import warnings

# Progress is shown in plain text here; tqdm would ask for widgets in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
