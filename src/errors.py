"""The two ways in which input can be wrong: one record, or the whole job."""


class RecordError(ValueError):
    """One record cannot be used; all others can.

    Attributes:
        kind: short stable name (``missing_image``, ``empty_text``, ...), the key of every table of errors.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        return type(self), (self.kind, str(self))  # crosses processes


class JobError(Exception):
    """The job must not start or go on (unknown key, no such folder, changed input ...).

    Programs print its text, without a traceback, and leave with exit code 2.
    """
