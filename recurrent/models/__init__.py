"""Complete networks, each called as `model(carry, inputs)`."""

from recurrent.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
