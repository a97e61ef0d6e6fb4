"""The tests of the plugin for pytest."""
