"""The commands for typer, by purpose: their options and help texts."""
