"""The three ways in which something can be no, and no more."""

from __future__ import annotations


class ImagefreshError(Exception):
    """The base of every error that this project raises on purpose.

    The text is one line that names subject, expected, observed and what to do next.
    """


class Refused(ImagefreshError):
    """We know, and it is no. Exit status 1; a failure in the reports."""


class EvidenceError(ImagefreshError):
    """We could not find out: engine down, connection lost, timeout. Exit status 11; an error in the reports."""


class ConfigError(ImagefreshError):
    """The operator asked wrongly: unknown repo, empty branch, bad settings. Exit status 4."""
