"""Records llama.cpp's token ids for the texts of corpus.py.

  python make_golden.py MODEL_DIR

MODEL_DIR holds gemma-3-270m-q4_k_m.gguf and SmolLM2-135M-Instruct.Q4_1.gguf. Needs llama-cpp-python,
gguf, sentencepiece and tokenizers (answers committed: made with 0.3.36, 0.19.0, 0.2.3, 0.23.3).
For valid UTF-8, Google's sentencepiece (Gemma) and Hugging Face's tokenizers (SmolLM2), given the
GGUF's vocabulary, must agree with llama.cpp, or the script fails. One difference is known: a text
that itself has U+2581 beside another or beside a space has a run of spaces to sentencepiece, which
writes spaces so before it cuts the runs out; llama.cpp cuts first. Facet does as llama.cpp.

Files: texts.bin is a list of texts, NAME.ids one list of ids per text. Integers are LEB128
varints; a list is its length followed by its entries; a text is its length followed by its bytes.
"""

import os
import pathlib
import re
import struct
import sys

import gguf
import llama_cpp
import sentencepiece
import tokenizers

import corpus

COUNT = 12000
SEED = 20240607
HERE = pathlib.Path(__file__).parent
GEMMA, SMOLLM = "gemma-3-270m-q4_k_m.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"


RUN_OF_MARKS = re.compile("[\u2581 ]\u2581|\u2581[\u2581 ]")


def varint(value):
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_lists(path, lists):
    data = varint(len(lists))
    data += b"".join(varint(len(ids)) + b"".join(map(varint, ids)) for ids in lists)
    path.write_bytes(data)


def fields_of(path):
    reader = gguf.GGUFReader(path)
    return {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in reader.fields.items()
            if key.startswith("tokenizer.ggml.")}


def message(fields):
    """A protobuf message of (number, value): ints, floats as 4 bytes, bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def sentencepiece_oracle(path):
    """A sentencepiece model of the file's vocabulary (sentencepiece_model.proto's field numbers)."""
    f = fields_of(path)
    pieces = []
    for i, (text, score, kind) in enumerate(zip(f["tokens"], f["scores"], f["token_type"])):
        kind = 2 if i == f["unknown_token_id"] else kind
        text = text.replace(" ", "\u2581") if kind == 4 else text
        pieces.append((1, message([(1, text.encode()), (2, float(score)), (3, kind)])))
    trainer = message([(3, 2), (4, len(pieces)), (35, 1), (40, f["unknown_token_id"]), (41, f["bos_token_id"]),
                       (42, f["eos_token_id"]), (43, f["padding_token_id"])])
    normalizer = message([(1, b"identity"), (3, int(f["add_space_prefix"])), (4, 0), (5, 1)])
    processor = sentencepiece.SentencePieceProcessor(model_proto=message(pieces + [(2, trainer), (3, normalizer)]))
    return lambda text: processor.encode(text)


def tokenizers_oracle(path):
    f = fields_of(path)
    merges = [tuple(m.split(" ", 1)) for m in f["merges"]]
    bpe = tokenizers.models.BPE(vocab={t: i for i, t in enumerate(f["tokens"])}, merges=merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True),
                                              split.ByteLevel(add_prefix_space=False, use_regex=True)])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def record(path, texts, check, name):
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    lists = [model.tokenize(text, add_bos=False, special=False) if text else [] for text in texts]
    checked, wrong = 0, []
    for text, ids in zip(texts, lists):
        try:
            string = text.decode()
        except UnicodeDecodeError:
            continue
        if RUN_OF_MARKS.search(string):
            continue
        checked += 1
        if check(string) != ids:
            wrong.append((text, ids, check(string)))
    for text, ids, other in wrong[:20]:
        print(f"{name}: {text!r}\n  llama.cpp {ids}\n  other     {other}")
    print(f"{name}: {len(lists)} texts, {checked} of them also checked with the other oracle, {len(wrong)} differ")
    write_lists(HERE / f"{name}.ids", lists)
    return not wrong


def main():
    models = sys.argv[1]
    texts = corpus.texts(COUNT, SEED)
    (HERE / "texts.bin").write_bytes(varint(len(texts)) + b"".join(varint(len(t)) + t for t in texts))
    gemma, smollm = os.path.join(models, GEMMA), os.path.join(models, SMOLLM)
    ok = record(gemma, texts, sentencepiece_oracle(gemma), "gemma3")
    ok &= record(smollm, texts, tokenizers_oracle(smollm), "smollm2")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
