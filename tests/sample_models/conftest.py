import sys
from pathlib import Path

# build.py is run as a script: its neighbours are top-level modules.
sys.path.insert(0, str(Path(__file__).parents[2] / "sample_models"))
