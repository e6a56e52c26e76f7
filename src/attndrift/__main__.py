"""``python -m attndrift``, and what ``torchrun -m attndrift`` starts."""

from attndrift.cli.main import main

main()
