"""Records where Hugging Face's tokenizers cuts the texts of corpus.py into words, for every
pre-tokenizer that Facet knows, with the expressions of the families' own tokenizer.json.

  python make_splits.py        (the committed file: tokenizers 0.23.3)

splits.bin: per family, in the order of FAMILIES, and per text of corpus.py that is UTF-8, two bytes,
little-endian: the low 16 bits of the FNV-1a hash of the words' sizes in bytes, one byte each (mod 256).
"""

import pathlib
import struct

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

import corpus
from make_golden import COUNT, SEED, fnv1a

LETTERS = """41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C
38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC
1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134
2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943"""
LETTER_CLASS = "".join("-".join(chr(int(end, 16)) for end in item.split("-")) for item in LETTERS.split())

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK_LLM = ["[\r\n]", rf"\s?[{LETTER_CLASS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
                "[一-龥\u0800-一가-\ud7ff]+"]
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
               r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]


def split(*patterns):
    return Sequence([Split(Regex(pattern), "isolated") for pattern in patterns])


GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)
FAMILIES = {
    "gpt-2": GPT2,
    "smollm": Sequence([Digits(individual_digits=True), GPT2]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
    "tekken": split(TEKKEN),
    "deepseek-llm": Sequence([split(*DEEPSEEK_LLM), split(r"\p{N}+")]),
    "deepseek-v3": split(*DEEPSEEK_V3),
}


def sizes(words, text):
    return bytes(len(text[begin:end].encode()) % 256 for _, (begin, end) in words)


def main():
    texts = []
    for data in corpus.texts(COUNT, SEED):
        try:
            texts.append(data.decode())
        except UnicodeDecodeError:
            pass
    out = b""
    for family in FAMILIES.values():
        for text in texts:
            out += struct.pack("<H", fnv1a(sizes(family.pre_tokenize_str(text), text)) & 0xFFFF)
    (pathlib.Path(__file__).parent / "splits.bin").write_bytes(out)


if __name__ == "__main__":
    main()
