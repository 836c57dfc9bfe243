"""llama.cpp through llama-cpp-python's low-level interface, as a process that is told what to do.

Runs in the peer's own Python. Reads one JSON object per line, {"do": NAME, ...arguments}, and
answers each with one: the result, or {"error": TEXT}. The model stays loaded from line to line.
Sampling is greedy and part of the time; tokenization is not. KV cache float16.

A server for several streams is made here of the same interface, because the one in the package
answers one request at a time: it batches continuously as llama.cpp's own does, the running streams'
tokens first and then what fits of new prompts (2,048 rows, computed 512 at a time). It has no HTTP,
which favours it.
"""

import ctypes
import json
import os
import pathlib
import sys
import time

import llama_cpp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from facet_bench import load  # noqa: E402

BATCH, MICRO_BATCH = 2048, 512
LONG_ROUNDS = 32  # of decode_after, at most
FLASH = {True: llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
         False: llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED}
GGML_LOG_LEVEL_ERROR = 4  # ggml.h; the package has no name for it


class Context:
    """Sequences of up to `length` tokens each."""

    def __init__(self, model, streams, length, threads, flash):
        params = llama_cpp.llama_context_default_params()
        params.swa_full = length <= BATCH  # beyond, layers with a window keep no more than that
        # A cell count that is a multiple of 256 for every sequence, as llama.cpp rounds anyway.
        params.n_ctx = streams * -(-length // 256) * 256
        params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[flash]
        self.handle = llama_cpp.llama_init_from_model(model, params)
        if not self.handle:
            raise RuntimeError(f"no context for {streams} x {length} tokens")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.streams = streams
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.handle)

    def forget(self, sequence=-1):
        memory = llama_cpp.llama_get_memory(self.handle)
        llama_cpp.llama_memory_seq_rm(memory, sequence, -1, -1)

    def run(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        status = llama_cpp.llama_decode(self.handle, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")

    def logits(self, row):
        values = llama_cpp.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(values, shape=(self.vocabulary,))

    def greedy(self, row):
        return int(np.argmax(self.logits(row)))

    def prefill(self, prompts):
        """The first token after each of the prompts, which are those of sequences 0, 1, ..."""
        rows = [(token, position, sequence, position == len(ids) - 1)
                for sequence, ids in enumerate(prompts) for position, token in enumerate(ids)]
        first = []
        for begin in range(0, len(rows), BATCH):
            part = rows[begin:begin + BATCH]
            self.run(part)
            first += [self.greedy(i) for i, row in enumerate(part) if row[3]]
        return first


class Slot:
    """A stream of the server and the request that it answers."""

    def __init__(self, number):
        self.number = number
        self.ids = None  # the prompt; None: no request
        self.done = 0    # of the prompt
        self.tokens = 0
        self.last = 0
        self.times = []  # of its tokens
        self.due = 0.0

    @property
    def decoding(self):
        return self.ids is not None and self.done == len(self.ids)


class Server:
    """Requests of `prompt` + `output` tokens on up to `streams` streams."""

    def __init__(self, context, prompt, output, seed):
        self.context = context
        self.prompt = prompt
        self.output = output
        self.seed = seed
        self.slots = [Slot(i) for i in range(context.streams)]
        self.ttft, self.tpot, self.itl = [], [], []
        self.tokens = 0

    def take(self, number, due):
        """Gives request `number` to a free slot; False if there is none."""
        slot = next((slot for slot in self.slots if slot.ids is None), None)
        if slot is None:
            return False
        self.context.forget(slot.number)
        slot.ids = load.prompt(self.context.vocabulary, self.prompt, number, self.seed)
        slot.done = slot.tokens = 0
        slot.times, slot.due = [], due
        return True

    @property
    def idle(self):
        return all(slot.ids is None for slot in self.slots)

    def step(self):
        rows, samplers = [], []
        for slot in self.slots:
            if slot.decoding:
                samplers.append((slot, len(rows)))
                rows.append((slot.last, len(slot.ids) + slot.tokens - 1, slot.number, True))
        for slot in self.slots:
            if slot.ids is None or slot.decoding:
                continue
            begin = slot.done
            slot.done = min(len(slot.ids), begin + BATCH - len(rows))
            for position in range(begin, slot.done):
                last = position == len(slot.ids) - 1
                if last:
                    samplers.append((slot, len(rows)))
                rows.append((slot.ids[position], position, slot.number, last))
        self.context.run(rows)
        chosen = [(slot, self.context.greedy(row)) for slot, row in samplers]
        now = time.perf_counter()
        for slot, token in chosen:
            slot.last = token
            slot.tokens += 1
            self.tokens += 1
            slot.times.append(now)
            if slot.tokens == self.output:
                self._finish(slot)

    def _finish(self, slot):
        times = slot.times
        self.ttft.append(times[0] - slot.due)
        self.itl += [b - a for a, b in zip(times, times[1:])]
        if len(times) > 1:
            self.tpot.append((times[-1] - times[0]) / (len(times) - 1))
        slot.ids = None


class Peer:
    """What can be asked for, by name."""

    def __init__(self):
        self.model = None
        self.long = {}  # of decode_after, by flash: (context, last token, its position)

    def about(self):
        folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
        return {"peer": "llama.cpp", "llama_cpp_python": llama_cpp.__version__,
                "libraries": sorted(p.name for p in folder.glob("*.so.*.*.*")),
                "features": llama_cpp.llama_print_system_info().decode()}

    def open(self, model, threads):
        self.close()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{model}: llama.cpp cannot load it")
        self.threads = threads
        return {}

    def close(self):
        for context, _, _ in self.long.values():
            context.__exit__()
        self.long = {}
        if self.model:
            llama_cpp.llama_model_free(self.model)
        self.model = None
        return {}

    def _context(self, streams, length, flash):
        return Context(self.model, streams, length, self.threads, flash)

    def decode(self, streams, tokens, seed, flash):
        with self._context(streams, 16 + tokens, flash) as context:
            last = context.prefill([load.prompt(context.vocabulary, 16, stream, seed)
                                    for stream in range(streams)])
            begin = time.perf_counter()
            for step in range(tokens):
                context.run([(token, 16 + step, stream, True)
                             for stream, token in enumerate(last)])
                last = [context.greedy(stream) for stream in range(streams)]
            return {"value": streams * tokens / (time.perf_counter() - begin)}

    def decode_after(self, ids, tokens, flash):
        """One stream after a long prompt. That is computed when it is asked for the first time;
        then the stream goes on."""
        if flash not in self.long:
            context = self._context(1, len(ids) + LONG_ROUNDS * tokens, flash)
            self.long[flash] = context, context.prefill([ids])[0], len(ids)
        context, last, position = self.long[flash]
        begin = time.perf_counter()
        for _ in range(tokens):
            context.run([(last, position, 0, True)])
            last = context.greedy(0)
            position += 1
        self.long[flash] = context, last, position
        return {"value": tokens / (time.perf_counter() - begin)}

    def prefill(self, repeats, seed, flash):
        seconds = []
        with self._context(1, 512, flash) as context:
            for number in range(repeats + 1):
                ids = load.prompt(context.vocabulary, 512, number, seed)
                context.forget()
                begin = time.perf_counter()
                context.prefill([ids])
                seconds.append(time.perf_counter() - begin)
        return {"value": 512 / load.percentile(seconds[1:], 50)}  # the first one warms up

    def serve(self, streams, requests, prompt, output, seed, flash):
        with self._context(streams, prompt + output, flash) as context:
            server = Server(context, prompt, output, seed)
            begin = time.perf_counter()
            sent = 0
            while sent < requests or not server.idle:
                while sent < requests and server.take(sent, time.perf_counter()):
                    sent += 1
                server.step()
            wall = time.perf_counter() - begin
        return {"output_tokens_per_s": server.tokens / wall,
                "ttft_p50_ms": 1e3 * load.percentile(server.ttft, 50),
                "itl_p99_ms": 1e3 * load.percentile(server.itl, 99)}

    def open_loop(self, rate, requests, prompt, output, streams, seed, flash):
        due = load.arrivals(rate, seed)
        times = [next(due) for _ in range(requests)]
        with self._context(streams, prompt + output, flash) as context:
            server = Server(context, prompt, output, seed)
            begin = time.perf_counter()
            sent = 0
            while sent < requests or not server.idle:
                now = time.perf_counter() - begin
                while sent < requests and times[sent] <= now:
                    if not server.take(sent, begin + times[sent]):
                        break
                    sent += 1
                if server.idle:
                    time.sleep(max(0.0, times[sent] - now))
                else:
                    server.step()
        return {"ttft_p50_s": load.percentile(server.ttft, 50),
                "ttft_p99_s": load.percentile(server.ttft, 99),
                "tpot_p50_s": load.percentile(server.tpot, 50)}

    def answer(self, ids, tokens, flash):
        """The greedy continuation and the log-probability of each of its tokens."""
        out, logprobs = [], []
        with self._context(1, len(ids) + tokens, flash) as context:
            token = context.prefill([ids])[0]
            row = len(ids) - 1
            while True:
                logits = context.logits(row).astype(np.float64)
                top = logits.max()
                logprobs.append(float(logits[token] - top - np.log(np.exp(logits - top).sum())))
                out.append(token)
                if len(out) == tokens:
                    return {"ids": out, "logprobs": logprobs}
                context.run([(token, len(ids) + len(out) - 1, 0, True)])
                row = 0
                token = context.greedy(0)


@llama_cpp.llama_log_callback
def errors_only(level, text, user_data):
    if level == GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    llama_cpp.llama_log_set(errors_only, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is not an answer
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(peer, request.pop("do"))(**request)
        except Exception as error:  # told to whoever asked
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
