"""Lets tests import what stands beside them, `report_sample`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
