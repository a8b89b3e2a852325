"""One network per family of tasks, each `model(carry, inputs)`."""

from recurrent.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
