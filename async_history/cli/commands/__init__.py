"""The commands for typer, by what they are for: their options and help texts."""
