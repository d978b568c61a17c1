"""Which language a text is written in: by its function words and by letters that only one language has.

A language is shown if at least LEAST_SHARE of the words are its function words, at least LEAST_KINDS of them
different, and if against every other language there are twice as many words that only it has as words that
only the other has. In neither half of the text may another have more: so mixed texts show nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ksteer_vllm.data.readers.words import repetitive, words_of

__all__ = ["LANGUAGES", "Language"]

LEAST_WORDS: Final = 5
LEAST_SHARE: Final = 0.2
LEAST_KINDS: Final = 3
AHEAD: Final = 2

LANGUAGES: Final = {
    "en": "english",
    "fr": "french",
    "es": "spanish",
    "de": "german",
    "it": "italian",
    "pt": "portuguese",
}

_WORDS: Final = {
    "en": "the of and to in is it you that was for on are with as his they be at this have from or had by "
    "but what some we can out other were all there when up use your how said an each she which do their "
    "if will then them these so would make like him into has more two could my than been who its now "
    "i i'm it's don't that's you're a not any very just about",
    "fr": "le la les de des du un une et est à au aux en il elle ils elles nous vous je tu ne pas que qui "
    "dans pour sur avec ce cette ces son sa ses mon ma mes ton ta tes leur leurs mais ou où donc car se "
    "sont être avoir ont ai suis es était fait faire plus très bien aussi comme si par peut tout tous "
    "toute sans même peu votre vos notre nos c'est j'ai qu'il d'un d'une l'on n'est il y a quand chaque "
    "avez pouvez faut lui autre autres entre bonjour merci oui non voici",
    "es": "el la los las de del un una unos unas y es en a al que no se por con para su sus lo le les como "
    "más pero o este esta estos estas ese esa eso son ser estar está están hay muy también me mi mis tu "
    "tus te si sí yo nosotros ellos ella él usted cuando donde porque qué cómo fue era ha han he hacer "
    "puede puedes todo todos toda cada sin sobre entre hasta desde ya uno otro otra tiene tienes hola "
    "gracias nos nuestro nuestra",
    "de": "der die das den dem des ein eine einen einem einer eines und ist in im zu zum zur mit von vom "
    "auf für an am als auch es sie er wir ihr ich du nicht kein keine sich dass wie was wenn aber oder "
    "so nur noch nach bei aus um über sind war waren hat haben hatte wird werden wurde kann können "
    "muss man mein meine dein deine sein seine ihre unser mehr sehr hier dann da durch bis doch schon "
    "ja nein sollte bitte",
    "it": "il lo la i gli le di del della dei delle un uno una e è in a al alla che non si per con su sono "
    "come più ma o questo questa questi queste essere ho hai ha hanno molto anche mi mio mia tu ti se "
    "io noi loro lei lui quando dove perché cosa nel nella nelle da dal dalla ogni tutto tutti può "
    "puoi grazie ciao",
    "pt": "o a os as de do da dos das um uma e é em no na nos nas que não se por com para seu sua seus "
    "suas mais mas ou este esta isso são ser estar está muito também me meu minha eu você vocês nós "
    "eles ela ele quando onde porque como foi era tem ter fazer pode cada sem sobre entre até já "
    "outro outra obrigado olá pelo pela ao à",
}
_FUNCTION_WORDS: Final = {code: frozenset(text.split()) for code, text in _WORDS.items()}
_ELIDED = re.compile(r"\b(?:qu|[cdjlmnst])(?=['’][^\W\d_])", re.IGNORECASE)
_OWN_LETTERS: Final = {"fr": "œêîûùëç", "es": "ñ¿¡", "de": "ßäöü", "it": "ìò", "pt": "ãõ"}


@dataclass(frozen=True)
class Language:
    """Whether a text is in one language throughout; code: a key of LANGUAGES."""

    code: str

    def shows(self, text: str) -> bool:
        words = words_of(text)
        if len(words) < LEAST_WORDS or repetitive(words):
            return False
        own = [_is_of(self.code, word) for word in words]
        kinds = {word for word, is_own in zip(words, own, strict=True) if is_own}
        middle = len(words) // 2
        return (
            sum(own) >= LEAST_SHARE * len(words)
            and len(kinds) >= LEAST_KINDS
            and self._leads(words, by=AHEAD)
            and all(any(half) for half in (own[:middle], own[middle:]))
            and all(self._leads(half, by=1) for half in (words[:middle], words[middle:]))
        )

    def _leads(self, words: list[str], by: int) -> bool:
        """Whether against every other language there is `by` times as much that only this one has."""
        for rival in LANGUAGES.keys() - {self.code}:
            told = [(_is_of(self.code, word), _is_of(rival, word)) for word in words]
            if by * told.count((False, True)) > told.count((True, False)):
                return False
        return True


def _is_of(code: str, word: str) -> bool:
    """Whether a word is a function word of a language, or has a letter or an elision that it alone has."""
    if word in _FUNCTION_WORDS[code] or (code == "fr" and _ELIDED.match(word)):
        return True
    return any(letter in word for letter in _OWN_LETTERS.get(code, ""))
