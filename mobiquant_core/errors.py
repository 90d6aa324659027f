"""The one exception family. Every message names what was given, the limit, and the next step.

It knows nothing of gradio or the command line: the edges turn these into a toast or an exit status.
"""


class MobiQuantError(Exception):
    """Base of every error that a user can cause or repair."""


class ConfigError(MobiQuantError):
    """A setting is outside what the quantizer supports."""


class BudgetError(MobiQuantError):
    """A bit budget or policy that cannot be served."""


class PromptError(MobiQuantError):
    """A prompt or text that cannot be run: empty, too long, not text."""


class UnsupportedModelError(MobiQuantError):
    """A model that was not found, or whose architecture is not in the table."""


class CheckpointError(MobiQuantError):
    """A checkpoint or run file that is missing, damaged, or could not be written."""


class KernelError(MobiQuantError):
    """A device kernel that cannot run for this shape, type or card."""


class Cancelled(MobiQuantError):  # noqa: N818 - it reports a wish of the user, not a fault
    """The caller asked to stop."""
