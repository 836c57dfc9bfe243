"""llama.cpp through the low-level interface of llama-cpp-python: token ids in, raw logits out."""

import ctypes

import llama_cpp
import numpy as np

llama_cpp.llama_backend_init()


@llama_cpp.llama_log_callback
def _silent(level, text, user_data):
    pass


llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))


class Peer:
    """One model and one context, which holds a single sequence (number 0)."""

    def __init__(self, path, context, threads=1, kv_type=llama_cpp.GGML_TYPE_F16):
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = context
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = kv_type
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"{path}: no context of {context} tokens")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.position = 0

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def reset(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def evaluate(self, ids, wanted):
        """Appends ids to the sequence; float32 logits [len(wanted), vocabulary] after those."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i in wanted
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        self.position += len(ids)
        rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i),
                                      shape=(self.vocabulary,)).copy() for i in wanted]
        return np.stack(rows)

    def tokenize(self, text, special):
        """Ids of `text`, with the model's own BOS if it wants one; markers only if `special`."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), True,
                                         special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize: {count}")
        return list(room[:count])


def log_softmax(logits):
    """Natural log-probabilities of float32 logits, summed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
