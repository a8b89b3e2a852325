"""Complete networks, one for each family of tasks."""

from recurrent.models.classifier import Classifier
from recurrent.models.encoder_decoder import EncoderDecoder
from recurrent.models.language_model import LanguageModel
from recurrent.models.token_model import TokenModel
from recurrent.models.transcriber import Transcriber

__all__ = [
  "Classifier",
  "EncoderDecoder",
  "LanguageModel",
  "TokenModel",
  "Transcriber",
]
