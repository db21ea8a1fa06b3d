"""``python -m orchestrator`` is the command ``labelwise``."""

from orchestrator.cli import main

main()
