"""Tests of the plugin for pytest."""
