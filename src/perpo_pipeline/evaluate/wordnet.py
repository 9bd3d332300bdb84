"""WordNet's synonyms, which METEOR needs, from where nltk or Debian keep the data.

nltk is a package, its data are not: `python -m nltk.downloader wordnet` or Debian's `wordnet-base`
bring them. Nothing is downloaded here.
"""

import functools
import io
import warnings
from pathlib import Path
from typing import Any

DEBIAN_FOLDER = Path("/usr/share/wordnet")
METEOR_LEFT_OUT = (
    "METEOR is left out: it needs WordNet, which is not installed; `apt-get install wordnet-base` "
    "or `python -m nltk.downloader wordnet`, then run the same command"
)
_LEXICOGRAPHER_FILES = 45


@functools.cache
def find_wordnet() -> Any | None:
    """nltk's reader of WordNet, None where the data are not installed."""
    import nltk

    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        return _debians()
    return nltk.corpus.wordnet


def _debians() -> Any | None:
    """The reader of Debian's files, which lack the names of WordNet's source files and the index
    that maps other languages: METEOR looks at neither."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc, unused-ignore]
        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{i:02} - 0\n" for i in range(_LEXICOGRAPHER_FILES)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """No mapping between versions."""

    if not (DEBIAN_FOLDER / "data.noun").is_file():
        return None
    nltk.data.path.append(str(DEBIAN_FOLDER))  # nltk opens files of its own places only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of languages other than English
        return Reader(str(DEBIAN_FOLDER), None)
