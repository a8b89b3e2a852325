"""Complete networks, one for each family of tasks."""

from recurrent.models.classifier import Classifier
from recurrent.models.encoder_decoder import EncoderDecoder
from recurrent.models.language_model import LanguageModel

__all__ = ["Classifier", "EncoderDecoder", "LanguageModel"]
