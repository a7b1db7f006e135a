"""Which language a text is in, from its script and its commonest small words.

IFEval's published checkers use langdetect, whose guess is drawn at random unless seeded, and which
knows no text of few letters. This is a rule: the script that most letters are of, then, where
several languages share it, the language whose small words are met most often. It differs from
langdetect in this: a language outside the tables below is taken for one of those inside or for
none; a Latin text without any known small word is of no language (None), where langdetect names
one all the same.
"""

import re
import unicodedata
from collections import Counter

# First word of a letter's Unicode name, and the language when only one is written in it.
SCRIPTS = {
    "KANNADA": "kn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "TELUGU": "te",
    "TAMIL": "ta",
    "THAI": "th",
    "BENGALI": "bn",
    "MALAYALAM": "ml",
    "HANGUL": "ko",
    "HEBREW": "he",
    "GREEK": "el",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
}
WORDS = {
    "LATIN": {
        "en": "the of and to a in is that it for you with on are this be as was i my not have at "
        "your we but they from or by an will can all has his her she he its our if so what there "
        "who when me no us more up out do how just would their about which into than then let",
        "de": "der die das und ist nicht ein eine zu den mit von im auf für sich dem es ich sie er "
        "wir auch werden sind war haben hat wie aber oder einen einer des am bei als kann mein "
        "ihr wird noch nur über aus nach dass um du",
        "fr": "le la les et est un une des du de en que qui dans pour pas sur au avec ce il elle "
        "nous vous je ne se sont plus par mais ou son sa ses cette être à aux leur l d",
        "es": "el la los las y es un una de del en que por para con no se su lo como más pero sus "
        "al le ya o este sí porque esta entre cuando muy sin sobre yo mi",
        "pt": "o a os as e é um uma de do da dos das em que por para com não se seu sua como mais "
        "mas no na nos nas ao pelo pela você eu ele ela são foi está ou também muito isso",
        "it": "il lo la i gli le e è un una di del della dei delle in che per con non si su come "
        "più ma anche al alla nel nella sono mi questo questa ho ha da dal tuo suo se io",
        "nl": "de het een en is van in dat op te voor met niet zijn aan er ook als maar bij door "
        "je ik hij wij ze naar om uit nog wat dit deze wordt heeft",
        "sv": "och att det i en som är på av för med den till inte ett jag de var han har om vi "
        "kan men så hon från du eller",
        "fi": "ja on ei se että hän oli mutta kun niin olen ovat minä sinä tämä joka mitä myös "
        "kuin tai jos voi ole kanssa sen nyt vain hänen me te he siitä ovat olla",
        "vi": "và là của có cho không một những được trong với các này người đã để khi tôi bạn "
        "ở từ đến như nhưng về sẽ rất cũng đó vì anh chị em thì",
        "sw": "na ya wa kwa ni katika za la kama hii hiyo yake yangu watu cha au lakini si kuwa "
        "mimi wewe sana pia ili hivyo huo vya wako yako hakuna kila mtu baada",
        "pl": "i w na z się nie jest to do że o jak ale po co tak za od przez dla czy był już są",
        "tr": "ve bir bu için ile da de çok ne daha gibi ama olarak ben sen o var olan değil",
        "id": "yang dan di ini itu dengan untuk dari tidak dalam akan pada adalah saya ke ada",
    },
    "CYRILLIC": {
        "ru": "и в не на я что он с это а как но по к у из за вы мы они бы для от то же его мне "
        "есть был или так ты она все этот если был быть о",
        "bg": "и е на да се за от с не си че ще са по като това но аз ми как до в ти тя той или "
        "му ги беше съм има със бъде към към един една което който",
        "uk": "і в не на я що він з це а як але та у до за ми ви вони для від є був або ти вона й",
    },
    "DEVANAGARI": {
        "hi": "है और के का की में से को यह हैं नहीं एक पर कि मैं ने हो लिए भी वह आप था तो हम "
        "कर जो या थी इस अपने साथ मेरे मेरी",
        "mr": "आहे आणि च्या मध्ये हा ही हे ते तो ती मी नाही एक आहेत साठी व या केले होते असे तुम्ही "
        "काही पण आपल्या त्यांच्या करण्यासाठी मला माझ्या माझी होता होती",
        "ne": "छ र को मा हो छन् यो लागि पनि ले गर्न हुन्छ एक त म तपाईं थियो गर्नुहोस् हामी यस "
        "भने मेरो तर गरेको तिनी छु",
    },
    "ARABIC": {
        "ar": "في من على أن إلى هذا هذه ما لا التي الذي هو هي كان عن مع كل أو إن لم قد يا أنا ثم "
        "بين و كما لكن حتى",
        "fa": "و در به از که این را با است برای آن یک می ها های تا بر شما هم من خود او ما بود شد "
        "نیست اما کرد باشد دارد هر",
        "ur": "اور کے کی کا ہے میں سے کو نے پر یہ ہیں کہ ایک اس کر بھی نہیں ہو وہ جو تھا آپ لیے "
        "تو ہم تھی گا",
    },
}
LISTS = {
    script: {name: frozenset(words.split()) for name, words in languages.items()}
    for script, languages in WORDS.items()
}


def detect(text: str) -> str | None:
    """Code of ISO 639-1, or None when there are no letters or no word that tells."""
    script = script_of(text)
    if script is None or script in SCRIPTS:
        return SCRIPTS.get(script or "")
    scores = _scores(text, script)
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] else None


def may_be_english(text: str) -> bool:
    """Latin letters, and no other language's small words are met more often than English ones."""
    if script_of(text) not in ("LATIN", None):
        return False
    scores = _scores(text, "LATIN")
    return scores["en"] == max(scores.values())


def script_of(text: str) -> str | None:
    """The script of most letters, by its Unicode name; kana decide where there are any."""
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    if names["HIRAGANA"] + names["KATAKANA"] > 0.1 * names.total():
        return "HIRAGANA"
    return max(names, key=lambda name: names[name], default=None)


def words_of(text: str) -> list[str]:
    """Words in small letters. Not \\w+, which cuts words of Devanagari at their vowel signs."""
    return re.findall(r"[^\s\d!-/:-@\[-`{-~।॥،؛؟«»“”‘’…–—。，、！？]+", text.lower())


def _scores(text: str, script: str) -> dict[str, int]:
    """How many of the text's words are small words, for each language of a script."""
    words = Counter(words_of(text))
    lists = LISTS.get(script, {})
    return {name: sum(words[word] for word in known) for name, known in lists.items()}
