"""The paper's own numbers (arXiv 2502.07830), read in its tables (C) or digitised from its plots (D).

What we only remember of it is not here.
"""

import pandas as pd

# Figure 4 (D): mean UnitMem of the vision encoder, layer 1 ... 12
UNITMEM = pd.DataFrame(
    {
        "caption": [0.272, 0.280, 0.289, 0.296, 0.309, 0.324, 0.337, 0.351, 0.361, 0.376, 0.391, 0.411],
        "view": [0.339, 0.346, 0.345, 0.349, 0.351, 0.355, 0.355, 0.355, 0.358, 0.362, 0.367, 0.376],
        "label": [0.265, 0.283, 0.293, 0.305, 0.320, 0.337, 0.345, 0.367, 0.388, 0.412, 0.440, 0.477],
    },
    index=pd.RangeIndex(1, 13, name="layer"),
)
# Figures 5a, 5b and 6 (D): CLIPMem (divided by its range) and ImageNet linear probe in %
CAPTIONS = pd.DataFrame({"clipmem": [0.438, 0.435, 0.428, 0.424, 0.422], "probe": [63.1, 63.2, 64.3, 64.8, 64.9]},
                        index=pd.RangeIndex(1, 6, name="captions"))  # fmt: skip
NOISE = pd.DataFrame(
    {
        "clipmem": [0.438, 0.435, 0.428, 0.421, 0.417, 0.422, 0.436, 0.447],
        "probe": [63.1, 63.4, 64.0, 65.0, 65.4, 64.8, 63.3, 61.5],
    },
    index=pd.Index([0, 0.01, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30], name="sigma"),
)
REMOVED = pd.DataFrame(
    {
        "clipmem": [63.1, 65.0, 66.4, 64.6, 63.2, 62.5, 62.0, 61.1],
        "similarity": [63.1, 64.8, 65.5, 64.8, 63.3, 62.6, 62.1, 61.3],
        "random": [63.1, 63.2, 63.1, 63.1, 63.0, 62.9, 62.6, 62.4],
    },
    index=pd.Index([0, 50, 100, 200, 400, 800, 1600, 3200], name="removed of 5,000"),
)
CANDIDATES = 5000
# What the paper reports on each claim, for README's table
REPORTS = {
    "1a": ".477 and .411 in layer 12 (Figure 4, digitised)",
    "1b": ".411 and .376 in layer 12; the other way round in layers 1 to 8 (Figure 4, digitised)",
    "1c": "supervised models memorize mislabelled samples, CLIP too (text)",
    "1d": "self-supervised models memorize atypical samples, CLIP too (text)",
    "1e": "CLIP lies between the two (abstract)",
    "2a": "above .89 for wrong captions, about 0 for precise ones (Figure 1)",
    "2d": "about 0 for precise captions (Figure 1)",
    "2e": "above .89 for vague captions (Figure 1)",
    "2f": "above .89 for atypical images (Figure 1)",
    "2g": "above .89 for atypical images (Figure 1)",
    "3a": "text .210, image .191 (the authors' later work)",
    "3c": "CLIPMem .423 with text augmented, .424 with images augmented (Table 1)",
    "3d": "noise on the text: .222 to .181; on the image: .222 to .201 (the authors' later work)",
    "4a": ".438 to .423, divided by the range (Table 1)",
    "4b": "63.11 to 64.88 % on ImageNet (Table 1)",
    "4c": ".438 to .417 at σ = .15, divided by the range (Figure 5b, digitised)",
    "4d": "63.1 to 65.4 % at σ = .15 (Figure 5b, digitised)",
    "4f": "63.1 to 66.4 % with 100 of 5,000 removed (Figure 6, digitised)",
    "4g": "66.4 and 63.1 % with 100 of 5,000 removed (Figure 6, digitised)",
}
