"""Runs autopsy from the folder above this one: nothing of the caller's environment leads elsewhere (python -I)."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.argv[0] = "autopsy"

from autopsy.__main__ import main  # noqa: E402 - found only now

main()
