"""Run notebook 02 at smoke with the versions that Colab has, in an environment of 6 GB: python tests/colab.py"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
COLAB = """torch>=2.11 torchvision numpy==2.1.3 pandas==2.2.3 pyarrow==18.1.0 pillow==11.3.0 scipy==1.16.3 tqdm
seaborn==0.13.2 scikit-learn==1.6.1 matplotlib==3.10.0 datasets==4.0.0 joblib==1.5.3 safetensors==0.8.0 filelock
ipykernel==6.17.1 ipython==7.34.0 ipywidgets==7.7.1 nbconvert nbformat"""  # as of August 2026
MISSING = "open_clip_torch==3.3.0 papermill"  # the first is what README installs there, the second runs the notebook
with TemporaryDirectory() as folder:
    python, book = f"{folder}/bin/python", "02_miscaptioned_memorization.ipynb"
    for words in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "-q", *COLAB.split(), *MISSING.split()],
        [python, "-m", "papermill", book, f"{folder}/out.ipynb", "-p", "scale", "smoke", "-p", "seeds", "1"],
    ):
        subprocess.run(words, cwd=NOTEBOOKS, check=True)
print("notebook 02 runs with Colab's versions")
