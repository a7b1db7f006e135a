"""For each IFEval instruction, an answer made to follow it and one made to break it.

Made from the instruction's arguments by counting up, not by asking a rule. Run by itself on the
published prompts it prints how the rules judge both:
python -m tests.evaluation.ifeval_answers input_data.jsonl [answers.jsonl]
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.ifeval import IFEval
from megatron_ring.evaluation.ifeval.rules import follows, follows_loosely

# Of the first of the declaration of human rights, and the like: ordinary prose of each language.
PROSE = {
    "en": "All human beings are born free and equal in dignity and rights. They have reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Das ist nicht neu.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Não é novo.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Non è una novità.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina. Tämä on tärkeää, mutta ei uutta.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền của họ.",
    "sw": "Watu wote wamezaliwa huru na sawa katika haki na hadhi yao. Hii ni kweli kwa kila mtu.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Это не ново.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Това не е ново за нас.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतंत्रता प्राप्त है। यह नया नहीं है।",
    "mr": "सर्व मानव जन्मतः स्वतंत्र आहेत आणि त्यांना समान अधिकार आहेत. हे नवीन नाही.",
    "ne": "सबै मानिसहरू जन्मजात स्वतन्त्र हुन् र समान अधिकार छन्। यो नयाँ होइन तर सत्य हो।",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. هذا ليس جديدا على أحد من الناس.",
    "fa": "تمام افراد بشر آزاد به دنیا می آیند و از لحاظ حقوق با هم برابر هستند. این تازه نیست.",
    "ur": "تمام انسان آزاد اور حقوق کے اعتبار سے برابر پیدا ہوئے ہیں۔ یہ کوئی نئی بات نہیں ہے۔",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ. ಘನತೆ ಮತ್ತು ಹಕ್ಕುಗಳಲ್ಲಿ ಸಮಾನರಾಗಿದ್ದಾರೆ.",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ।",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "ta": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர். அவர்கள் சமமானவர்கள்.",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "th": "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


def pair(instruction: str, of: dict[str, Any]) -> tuple[str, str]:
    """(an answer that follows, one that does not); "less than one" of a thing is none of it."""
    made = _counted(instruction, of)
    if made is not None:
        wanted, relation, write = made
        enough, short = write(wanted), write(wanted - 1)
        return (enough, short) if relation == "at least" else (short, enough)
    return _shaped(instruction, of)


def _counted(instruction: str, of: dict[str, Any]) -> tuple[int, str, Any] | None:
    """The number asked for, how it is meant, and what writes so many of the thing."""
    least = "at least"
    if instruction == "keywords:frequency":
        key = of["keyword"].upper()
        return of["frequency"], of["relation"], lambda n: "Zzz" + f" {key}." * n
    if instruction == "keywords:letter_frequency":
        filler = "1" if of["letter"] != "1" else "2"
        return of["let_frequency"], of["let_relation"], lambda n: filler + of["letter"].upper() * n
    if instruction == "length_constraints:number_sentences":
        return (
            of["num_sentences"],
            of["relation"],
            lambda n: " ".join(f"Dr. Smith asks no {i}." for i in range(n)),
        )
    if instruction == "length_constraints:number_words":
        return of["num_words"], of["relation"], lambda n: ", ".join(f"w{i}" for i in range(n))
    if instruction == "detectable_content:number_placeholders":
        return of["num_placeholders"], least, lambda n: "Dear (you)" + " [name]" * n
    if instruction == "detectable_format:number_highlighted_sections":
        return of["num_highlights"], least, lambda n: "* no" + "\n*yes* and ** **" * n
    if instruction == "detectable_format:multiple_sections":
        name = of["section_spliter"]
        lines = lambda n: "".join(f"\n{name} {i + 1}\ntext" for i in range(n))  # noqa: E731
        return of["num_sections"], least, lambda n: f"The {name} list" + lines(n)
    if instruction == "change_case:capital_word_frequency":
        return (
            of["capital_frequency"],
            of["capital_relation"],
            lambda n: "Mixed Case, then" + " LOUD" * n,
        )
    return None


def _shaped(instruction: str, of: dict[str, Any]) -> tuple[str, str]:
    kind = instruction.partition(":")[2]
    if kind == "existence":
        words = [word.upper() for word in of["keywords"]]
        return "Zzz " + ", ".join(words), "Zzz " + ", ".join(words[1:])
    if kind == "forbidden_words":
        words = of["forbidden_words"]
        return "Zq" + "q ".join(words) + "q", f"It is ({words[-1].title()})."
    if kind == "response_language":
        other = "en" if of["language"] not in ("en",) else "fr"
        near = {"hi": "mr", "mr": "ne", "ne": "hi", "fa": "ur", "ur": "ar", "ar": "fa"}
        near |= {"ru": "bg", "bg": "ru", "pt": "es", "it": "pt"}
        return PROSE[of["language"]], PROSE[near.get(of["language"], other)]
    if kind == "number_paragraphs":
        parts = [f"Text {i}." for i in range(of["num_paragraphs"] + 1)]
        return "\n***\n".join(parts[1:]), "\n***\n".join(parts)
    if kind == "nth_paragraph_first_word":
        parts = [f"Zzz {i}." for i in range(of["num_paragraphs"])]
        parts[of["nth_paragraph"] - 1] = f'"{of["first_word"].upper()}, so'
        return "\n\n".join(parts), "\n\n".join([*parts, "One more."])
    if kind == "number_bullet_lists":
        lines = [f"{'*-'[i % 2]} point {i}" for i in range(of["num_bullets"] + 1)]
        return "List:\n" + "\n".join(lines[1:]), "List:\n" + "\n".join(lines)
    if kind == "postscript":
        return f"Bye.\n{of['postscript_marker'].lower()} more", "Bye.\nPS more"
    return {
        "constrained_response": ("My answer is maybe.", "My answer is perhaps."),
        "json_format": ('```json\n{"a": [1, null]}\n```', "{'a': [1, null]}"),
        "title": ("<<A song>>\nla", "<< >>\n<A song>\nla"),
        "two_responses": ("One.\n******\nTwo.", "One.\n******\nOne."),
        "english_capital": (PROSE["en"].upper(), PROSE["de"].upper()),
        "english_lowercase": (PROSE["en"].lower(), PROSE["en"]),
        "no_comma": ("No; none at all.", "One, at least."),
        "quotation": (' "All of it." \n', '"All" of it.'),
        "end_checker": (
            f'So. {of.get("end_phrase", "").upper()}"\n',
            f"So. {of.get('end_phrase', '')} Bye.",
        ),
        "repeat_prompt": (
            f"{of.get('prompt_to_repeat', '').upper()}\nYes.",
            f"Sure! {of.get('prompt_to_repeat', '')}\nYes.",
        ),
    }[kind]


def main() -> None:
    seen: dict[str, Counter[str]] = {}
    lines = []
    for item in IFEval(TaskConfig(file=Path(sys.argv[1]))).items():
        for name, of in zip(item.gold["instructions"], item.gold["arguments"], strict=True):
            count = seen.setdefault(name, Counter())
            for meant, text in zip(("follows", "breaks"), pair(name, of), strict=True):
                strict, loose = follows(text, name, of), follows_loosely(text, name, of)
                count[f"{meant}, strict {strict}, loose {loose}"] += 1
                keys = {"key": item.id, "instruction": name, "arguments": of, "meant": meant}
                lines.append({**keys, "text": text, "strict": strict, "loose": loose})
    for name in sorted(seen):
        print(name, dict(seen[name]))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
