"""Records how llama.cpp encodes, decodes and chats with the models that Facet is tested with.

  python make_golden.py MODEL_DIR

MODEL_DIR holds gemma-3-270m-q4_k_m.gguf and SmolLM2-135M-Instruct.Q4_1.gguf. Needs llama-cpp-python,
gguf, sentencepiece, tokenizers and jinja2 (the committed files: 0.3.36, 0.19.0, 0.2.3, 0.23.3, 3.1.6).

For valid UTF-8, Google's sentencepiece (Gemma) and Hugging Face's tokenizers (SmolLM2), given the
GGUF's vocabulary, must agree with llama.cpp, or the script fails. One difference is known: a text
that itself has U+2581 beside another or beside a space has a run of spaces to sentencepiece, which
writes spaces so before it cuts the runs out; llama.cpp cuts first. Facet does as llama.cpp.

Files, all of them made of LEB128 varints and of strings (a varint length, then the bytes):
  texts.bin     count; the texts of corpus.py
  NAME.ids      count; per text the number of ids and the ids
  NAME.decoded  per text 8 bytes, little-endian: the FNV-1a hash of llama.cpp's text for the ids, with
                Python's U+FFFD for what is not UTF-8
  NAME.chats    count; per conversation the number of messages, each a role and a content, and then the
                number of ids and the ids of the prompt that asks for the next answer
"""

import ctypes
import os
import pathlib
import random
import re
import struct
import sys

import gguf
import jinja2.sandbox
import llama_cpp
import sentencepiece
import tokenizers

import corpus

COUNT = 12000
SEED = 20240607
HERE = pathlib.Path(__file__).parent
RUN_OF_MARKS = re.compile("[\u2581 ]\u2581|\u2581[\u2581 ]")


def varint(value):
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(data):
    return varint(len(data)) + data


def id_list(ids):
    return varint(len(ids)) + b"".join(map(varint, ids))


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def fields_of(path):
    reader = gguf.GGUFReader(path)
    return {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in reader.fields.items()
            if key.startswith("tokenizer.")}


def message(fields):
    """A protobuf message of (number, value): ints, floats as 4 bytes, bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + string(value)
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
    return processor.encode


def tokenizers_oracle(path):
    f = fields_of(path)
    merges = [tuple(m.split(" ", 1)) for m in f["merges"]]
    bpe = tokenizers.models.BPE(vocab={t: i for i, t in enumerate(f["tokens"])}, merges=merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True),
                                              split.ByteLevel(add_prefix_space=False, use_regex=True)])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def gemma_prompt(path, messages):
    """llama.cpp's built-in Gemma format; it leaves <bos> to the tokenizer."""
    chat = (llama_cpp.llama_chat_message * len(messages))(
        *[llama_cpp.llama_chat_message(role=role.encode(), content=content.encode()) for role, content in messages])
    out = ctypes.create_string_buffer(1 << 16)
    size = llama_cpp.llama_chat_apply_template(b"gemma", chat, len(messages), True, out, len(out))
    assert 0 < size <= len(out)
    return out.raw[:size]


def file_prompt(path, messages):
    """The file's own template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(fields_of(path)["tokenizer.chat_template"])
    return template.render(messages=[{"role": role, "content": content} for role, content in messages],
                           add_generation_prompt=True).encode()


def conversations():
    rng = random.Random(SEED)
    makers = [corpus.prose, corpus.prose, corpus.code, corpus.emoji, corpus.digits, corpus.scatter, lambda rng: ""]

    def content():
        # llama.cpp trims ASCII white space and Python's templates Unicode's, so only the former stands at the ends.
        text = "".join(rng.choice(makers)(rng) for _ in range(rng.randint(1, 3)))
        return rng.choice(["", "", " ", "\n\n"]) + text.strip() + rng.choice(["", "", "  ", "\n"])

    for turns in [1, 1, 1, 1, 3, 3, 3, 5] * 5:
        messages = [("system", content())] if rng.random() < 0.5 else []
        messages += [("assistant" if turn % 2 else "user", content()) for turn in range(turns)]
        yield messages


def piece(model, token):
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    out = ctypes.create_string_buffer(1024)
    size = llama_cpp.llama_token_to_piece(vocabulary, token, out, len(out), 0, False)
    assert size >= 0
    return out.raw[:size]


def check(name, texts, lists, oracle):
    checked = wrong = 0
    for text, ids in zip(texts, lists):
        try:
            decoded = text.decode()
        except UnicodeDecodeError:
            continue
        if RUN_OF_MARKS.search(decoded):
            continue
        checked += 1
        if oracle(decoded) != ids:
            wrong += 1
            print(f"{name}: {text!r}\n  llama.cpp {ids}\n  other     {oracle(decoded)}")
    print(f"{name}: {len(lists)} texts; {wrong} of {checked} differ from the other oracle")
    return wrong == 0


def record(name, path, oracle, prompt):
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    texts = corpus.texts(COUNT, SEED)
    lists = [model.tokenize(text, add_bos=False, special=False) if text else [] for text in texts]
    (HERE / f"{name}.ids").write_bytes(varint(len(lists)) + b"".join(map(id_list, lists)))

    decoded = [b"".join(piece(model, token) for token in ids).decode(errors="replace") for ids in lists]
    (HERE / f"{name}.decoded").write_bytes(b"".join(struct.pack("<Q", fnv1a(text.encode())) for text in decoded))

    chats = b""
    chat_list = list(conversations())
    for messages in chat_list:
        ids = model.tokenize(prompt(path, messages), add_bos=True, special=True)
        chats += varint(len(messages))
        chats += b"".join(string(role.encode()) + string(content.encode()) for role, content in messages)
        chats += id_list(ids)
    (HERE / f"{name}.chats").write_bytes(varint(len(chat_list)) + chats)
    return check(name, texts, lists, oracle)


def main():
    gemma = os.path.join(sys.argv[1], "gemma-3-270m-q4_k_m.gguf")
    smollm = os.path.join(sys.argv[1], "SmolLM2-135M-Instruct.Q4_1.gguf")
    texts = corpus.texts(COUNT, SEED)
    (HERE / "texts.bin").write_bytes(varint(len(texts)) + b"".join(map(string, texts)))
    ok = record("gemma3", gemma, sentencepiece_oracle(gemma), gemma_prompt)
    ok &= record("smollm2", smollm, tokenizers_oracle(smollm), file_prompt)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
