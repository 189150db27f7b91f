"""Writes data/tokenizer.bin: hand-written and random Unicode-heavy strings with the ids that the
`tokenizers` package gives them; see README.md."""

import pathlib
import random
import struct
import sys
import unicodedata

from bpe import Bpe, huggingface
from gguf_file import GgufFile
from oracle import write_ids, write_string

HERE = pathlib.Path(__file__).parent
SEED = 20250131
RANDOM_STRINGS = 700

HAND_WRITTEN = [
    "", " ", "  ", "\n", "\t", "\r\n", " \n ", "a", " a", "  a", "   a", "a ", "a  ", "a\n\nb", "\n\n\n",
    "Hello, world!", "I'm, you're, he's, we've, they'll, I'd, can't", "I'M YOU'RE HE'S", "'s 's''s 'ss",
    "'ll''ve'd'm't're", "rock 'n' roll", "don’t", "''", "'", " '", " 's", "'S", "'tis 'twas",
    "1", "12", "1234567890", " 1", "  1", "   12", "a1", "a 1", "1a", "3.14159", "1,000,000", "1\n2",
    "½ ¼ ¾", "² ³ ¹", "Ⅷ ⅷ", "①②③", "٠١٢٣", "०१२३", "๑๒๓", "一二三", "〇", "𝟘𝟙𝟚", "x²+y²=z²", "½a", "a½",
    "Straße ẞ ÄÖÜ", "naïve café", "nai\u0308ve cafe\u0301", "e\u0301\u0301\u0301", "\u0301", " \u0301a",
    "Ångström Å Å", "ﬁ ﬂ ﬀ", "ǅ ǈ", "ʼn ʻokina", "ª º", "İstanbul ıi",
    "Привет, мир!", "Γειά σου Κόσμε", "Շնորհակալություն", "გამარჯობა", "שלום עולם", "שָׁלוֹם",
    "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "نستعلیق می‌خواهم", "नमस्ते दुनिया", "क्षत्रिय ज्ञान", "হ্যালো বিশ্ব",
    "வணக்கம் உலகம்", "నమస్కారం", "ಕನ್ನಡ", "മലയാളം", "සිංහල", "สวัสดีชาวโลก", "ภาษาไทยไม่มีวรรค", "ສະບາຍດີ",
    "မြန်မာဘာသာ", "ភាសាខ្មែរ", "བོད་ཡིག", "አማርኛ", "ᏣᎳᎩ", "ᓀᐦᐃᔭᐍᐏᐣ", "ᚠᚢᚦᚨᚱᚲ", "𐌰𐌱𐌲", "𒀀𒁀", "𓀀𓁐",
    "你好，世界！", "繁體中文", "日本語のテキスト", "カタカナ ｶﾀｶﾅ", "한국어 텍스트", "ㄱㄴㄷ", "각", "㍿ ㎏", "𠀀𠀁𪜶", "Ａ１！",
    "😀😃😄", "👩‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️ ❤", "☝🏿", "1️⃣", "🧑🏻‍💻 codes", "a😀b", " 😀", "🫠🥹",
    "\u00a0", "a\u00a0b", "\u00a0a", "a\u00a0\u00a0b", " \u00a0a", "\u00a0 a", "\u2003em\u2002en", "\u3000全角",
    "\u2028\u2029", "\u0085", "\u1680a", "\u202fa", "\u205f", "\u180e", "\u200b", "a\u200bb", "\ufeffBOM",
    "\u2060", "\u00ad", "\u061c\u200e\u200f", "\u202eabc\u202c", "\x1c\x1f", "\x0b\x0c", "\x00", "a\x00b",
    "\x01\x02\x03", "\x7f", "\x80\x9f", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\U000e0041", "\ue000",
    "\x04", "a\x04b", "th\x06e", "\x13\x14 \x16", "\U00040000", "a\U00050000b",
    "    indented", "\tif (x) {\n\t\treturn;\n\t}", "def f(x):\n    return x**2\n\n\n", "a   b    c     d",
    " \t \t x", "x \n\n y", "x\n \n y", "\n x", "\n  x", " \n1", "a  1", "a  !", "!  a", "! !", "!!!", "...",
    "--flag=value", "http://example.com/?q=a&b=%20#top", "user@example.org", "C:\\path\\to\\file", "<b>bold</b>",
    "{\"key\": [1, 2, {\"x\": null}]}", "SELECT * FROM t WHERE id=1;", "#include <vector>", "a->b::c<d>()",
    "$100 €200 £300 ¥400 ₹500", "50% ± 3‰", "∑∫∂√∞≠≤≥", "α→β ⇒ γ", "“quoted” ‘text’ «text»", "—–-‐", "…", "·•◦",
    "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "<repo_name>x<file_sep>", "<|im_", "ĠĊ", "Ġthe",
    "snake_case_name camelCaseName SCREAMING_CASE", "_", "__init__", "a_1", "٪", "؟", "،", "।", "。", "、",
    "supercalifragilisticexpialidocious" * 3, "a" * 300, " " * 130, "\n" * 70, "é" * 90, "ab" * 200, "9" * 60,
    "🙂" * 40, "的" * 80, "!" * 150, " a" * 100, "- " * 80, "=" * 129, "the " * 50, "\t" * 33 + "x",
]

RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x36F), (0x370, 0x3FF),
    (0x400, 0x52F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF),
    (0xE00, 0xE7F), (0x1000, 0x109F), (0x1200, 0x137F), (0x1780, 0x17FF), (0x2000, 0x206F), (0x2070, 0x209F),
    (0x20A0, 0x20BF), (0x2100, 0x218F), (0x2460, 0x24FF), (0x2600, 0x27BF), (0x3000, 0x303F), (0x3040, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF),
    (0x10330, 0x1034A), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF),
    (0x20000, 0x2A6DF), (0xE0020, 0xE007F),
]
GLUE = [" ", " ", " ", "  ", "   ", "\n", "\t", "'s", "'re", "'", "\u00a0", "\u200d", "\ufe0f", "\u0301", "1", "42"]


def random_character(random_source):
    while True:
        low, high = random_source.choice(RANGES)
        c = chr(random_source.randint(low, high))
        # Assigned in Unicode 14, so that all libraries agree about its class.
        if unicodedata.category(c) not in ("Cn", "Cs"):
            return c


def random_string(random_source):
    parts = []
    for _ in range(random_source.randint(1, 12)):
        kind = random_source.random()
        if kind < 0.4:
            parts.append(random_source.choice(GLUE))
        elif kind < 0.6:
            parts.append("".join(random_character(random_source)
                                 for _ in range(random_source.randint(1, 8))))
        elif kind < 0.8:
            low, high = random_source.choice(RANGES)
            run = (chr(random_source.randint(low, high)) for _ in range(random_source.randint(1, 10)))
            parts.append("".join(c for c in run if unicodedata.category(c) not in ("Cn", "Cs")))
        else:
            text = random_source.choice(HAND_WRITTEN)
            begin = random_source.randint(0, len(text))
            parts.append(text[begin:begin + random_source.randint(1, 12)])
    return "".join(parts)


def main():
    bpe = Bpe(GgufFile(sys.argv[1]).metadata)
    oracle = huggingface(bpe)
    random_source = random.Random(SEED)
    strings = list(dict.fromkeys(
        HAND_WRITTEN + [random_string(random_source) for _ in range(RANDOM_STRINGS)]))
    differ = 0
    with open(HERE / "data" / "tokenizer.bin", "wb") as out:
        out.write(b"TRVT" + struct.pack("<II", 1, len(strings)))
        for text in strings:
            ids = oracle.encode(text).ids
            if ids != bpe.encode(text):
                differ += 1
                print(f"the two oracles differ: {text!r}")
            write_string(out, text)
            write_ids(out, ids)
    print(f"{len(strings)} strings ({len(HAND_WRITTEN)} hand-written, seed {SEED}); the plain Python "
          f"implementation differs on {differ}")


if __name__ == "__main__":
    main()
