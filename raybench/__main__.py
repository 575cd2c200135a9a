"""`python -m raybench` is the command `raybench`."""

from raybench.cli import main

main()
