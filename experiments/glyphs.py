"""Labels in figures, in scripts that the default font may lack."""

import unicodedata
from collections.abc import Iterable

DEFAULT = "DejaVu Sans"  # The font that comes with matplotlib.
BOXES = "Last Resort", ".LastResort"  # Fonts that draw a box for any character.
WHITE_SPACE = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}  # Signs for it.


class Labels:
  """Finds fonts for tokens, and writes what no installed font has.

  White space is shown by signs, and a combining mark on a dotted circle.
  Characters without a glyph, and control characters, become code points such as
  U+4E00. Letters are not joined or reordered as Arabic script would need it.

  Args:
    texts: all the texts to show.

  Attributes:
    fonts: names of font families. matplotlib takes each character from the
      first one that has it.
  """

  def __init__(self, texts: Iterable[str]):
    from matplotlib import font_manager, ft2font

    missing = {ord(char) for text in texts for char in text}
    self.fonts: list[str] = []
    self._covered: set[int] = set()
    installed = font_manager.fontManager.ttflist
    # The default font comes first, then the others by name.
    for font in sorted(installed, key=lambda x: (x.name != DEFAULT, x.name)):
      if not missing:
        break
      if font.style != "normal" or font.name.startswith(BOXES):
        continue
      has = missing & ft2font.FT2Font(font.fname).get_charmap().keys()
      if has or font.name == DEFAULT:
        self.fonts += [font.name] * (font.name not in self.fonts)
        self._covered |= has
        missing -= has

  def show(self, text: str) -> str:
    """Returns the label of a token."""
    label = "".join(map(self._show, text))
    if label and unicodedata.category(label[0]).startswith("M"):
      label = "\u25cc" + label
    # matplotlib would read what is between two dollar signs as mathematics.
    return label.replace("$", r"\$")

  def _show(self, char: str) -> str:
    if char in WHITE_SPACE:
      return WHITE_SPACE[char]
    hidden = unicodedata.category(char)[0] in "CZ"
    if hidden or ord(char) not in self._covered:
      return f"U+{ord(char):04X}"
    return char
