"""WordNet's synonyms, which METEOR needs: finds the data that nltk or Debian installed.

The package nltk comes without its data: `python -m nltk.downloader wordnet` or Debian's
`wordnet-base` installs them. This module downloads nothing.
"""

import functools
import io
import warnings
from pathlib import Path
from typing import Any

DEBIAN_FOLDER = Path("/usr/share/wordnet")
METEOR_LEFT_OUT = (
    "METEOR is left out: it needs WordNet, which is not installed. Run `apt-get install "
    "wordnet-base` or `python -m nltk.downloader wordnet`, then the same command again"
)
_LEXICOGRAPHER_FILES = 45


@functools.cache
def find_wordnet() -> Any | None:
    """nltk's reader of WordNet, or None if the data are not installed."""
    import nltk

    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        return _debian_reader()
    return nltk.corpus.wordnet


def _debian_reader() -> Any | None:
    """A reader of Debian's files, or None if they are not installed.

    They lack the names of WordNet's source files and the index for other languages; METEOR reads
    neither.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc, unused-ignore]
        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{i:02} - 0\n" for i in range(_LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Maps no versions: METEOR needs one."""

    if not (DEBIAN_FOLDER / "data.noun").is_file():
        return None
    nltk.data.path.append(str(DEBIAN_FOLDER))  # nltk opens only files in these folders
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns that other languages are missing
        return Reader(str(DEBIAN_FOLDER), None)
