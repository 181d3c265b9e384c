"""What can be wrong with a checkpoint. Every message says what to do about it."""

from __future__ import annotations


class CheckpointError(Exception):
    """Anything wrong with a checkpoint."""


class CheckpointNotFound(CheckpointError):
    """There is no checkpoint where one was looked for."""


class CheckpointCorrupt(CheckpointError):
    """A file of the checkpoint is missing, cut off or changed."""


class CheckpointMismatch(CheckpointError):
    """The checkpoint is whole, but belongs to another model or another set-up."""


class CheckpointNotSaved(CheckpointError):
    """A state was not written; the ones before it are still there."""


class NoRoom(CheckpointNotSaved):
    """A disk has no room for another step; all hosts raise this together, before any of them writes."""
