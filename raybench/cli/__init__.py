"""The command line. Verbs live in modules by what they do; heavy imports wait until a verb runs."""

from raybench.cli.app import app, main

__all__ = ["app", "main"]
