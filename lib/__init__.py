"""The science of the notebooks: training and scoring. lib/README.md lists the files; the rest is in companion/."""
