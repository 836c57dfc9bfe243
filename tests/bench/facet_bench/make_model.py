"""Makes and describes model files. Runs in the peer's Python, for the gguf package and llama.cpp.

    make_model.py quantize SOURCE TARGET q8_0|q4_0|q4_k_m   as llama.cpp does it
    make_model.py random-1b TOKENIZER_FROM TARGET           Gemma 3 1B's shapes, random weights, F16
    make_model.py describe FILE                             sizes, as JSON
"""

import ctypes
import json
import math
import os
import sys

import gguf
import numpy as np

WIDTH, LAYERS, FFN, HEADS, KV_HEADS, HEAD_DIM = 1152, 26, 6912, 4, 1, 256
VOCABULARY = 262144
WINDOW, CONTEXT, THETA, EPSILON = 512, 32768, 1e6, 1e-6
STREAM_ROWS = 16384  # of the embedding, drawn at a time


def quantize(source, target, kind):
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    types = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
             "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = types[kind]
    params.allow_requantize = True
    params.nthread = len(os.sched_getaffinity(0))
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"{source}: llama.cpp cannot make {kind} of it")


def copy_tokenizer(writer, path):
    for name, field in gguf.GGUFReader(path).fields.items():
        if not name.startswith("tokenizer."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)


def add_shapes(writer):
    writer.add_name("Gemma 3 1B shapes, random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(THETA)
    writer.add_sliding_window(WINDOW)


def tensors():
    """Name, shape and gain; those of one dimension are norms. The gains are tiny_models.py's:
    attention neither flat nor one-hot, branches about as large as the residual they join."""
    yield "token_embd", (VOCABULARY, WIDTH), 1.5
    yield "output_norm", (WIDTH,), 1
    for layer in range(LAYERS):
        p = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            yield p + norm, (WIDTH,), 1
        yield p + "attn_q_norm", (HEAD_DIM,), 1.4
        yield p + "attn_k_norm", (HEAD_DIM,), 1.4
        yield p + "attn_q", (HEADS * HEAD_DIM, WIDTH), 1.4
        yield p + "attn_k", (KV_HEADS * HEAD_DIM, WIDTH), 1.4
        yield p + "attn_v", (KV_HEADS * HEAD_DIM, WIDTH), 1
        yield p + "attn_output", (WIDTH, HEADS * HEAD_DIM), 1.5
        yield p + "ffn_gate", (FFN, WIDTH), 1
        yield p + "ffn_up", (FFN, WIDTH), 1
        yield p + "ffn_down", (WIDTH, FFN), 1.5


def draw(rng, shape, gain):
    if len(shape) == 1:
        return (gain * rng.uniform(0.5, 1.5, shape)).astype("f4")
    scale = np.float32(gain / math.sqrt(shape[1]))
    values = np.empty(shape, "f2")
    for row in range(0, shape[0], STREAM_ROWS):
        part = values[row:row + STREAM_ROWS]
        part[:] = rng.standard_normal(part.shape, dtype="f4") * scale
    return values


def random_1b(tokenizer_from, target):
    """Streams tensor by tensor: no more than the largest one is in memory."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(target, "gemma3")
    add_shapes(writer)
    copy_tokenizer(writer, tokenizer_from)
    for name, shape, _ in tensors():
        kind = np.dtype("f4" if len(shape) == 1 else "f2")
        writer.add_tensor_info(name + ".weight", shape, kind, math.prod(shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, gain in tensors():
        writer.write_tensor_data(draw(rng, shape, gain))
    writer.close()


def describe(path):
    """The embedding is the output layer too, so a step reads every tensor once."""
    sizes = {tensor.name: (int(tensor.n_bytes), int(tensor.n_elements))
             for tensor in gguf.GGUFReader(path).tensors}
    parameters = sum(elements for _, elements in sizes.values())
    print(json.dumps({"weight_bytes": sum(size for size, _ in sizes.values()),
                      "parameters": parameters,
                      "layer_parameters": parameters - sizes["token_embd.weight"][1]}))


if __name__ == "__main__":
    {"quantize": quantize, "random-1b": random_1b, "describe": describe}[sys.argv[1]](*sys.argv[2:])
