"""Lets `python -m zootools` work like the installed command."""

from zootools.cli import main

main(prog_name="zootools")
