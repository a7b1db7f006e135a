"""How asking a model can end without an answer."""


class RefusedError(RuntimeError):
    """This request is not answered, though others are: its record is rejected."""


class NoAnswerError(ValueError):
    """The endpoint does not answer: the run stops. Nothing is lost, and the next one goes on."""


class BudgetError(ValueError):
    """The budget does not allow another request: the run stops, and a higher one goes on."""
