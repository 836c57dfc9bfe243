"""How much of each kind of work a run does. Every row is the median of `rounds` alternating rounds;
time is saved in the samples, not in the rounds."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done with the models of one size. The first of the kinds, the *main* one, gets
    everything; of the others, only decode 1 and prefill are measured.

    Facet's samples are longer than the peer's: its first steps of a batch are still mixed with the
    prompts of later streams, while the peer's steps are decoding and nothing else."""

    decode_tokens: dict  # of each stream, by the number of streams; of all that is Facet
    peer_tokens: dict    # the same of the peer
    prefill_repeats: int
    peer_prefill_repeats: int
    serve_streams: tuple = ()
    serve_tokens: tuple = (256, 128)
    cost_streams: tuple = ()      # of which the cost of cluster and degree is measured ...
    cost_repeats: int = 2         # ... so often in a round: a few percent are looked for
    long_prompt: int = 0          # of the decode row with a long context; 0: there is none
    long_tokens: int = 32
    speculation_tokens: int = 0   # of each text, with and without speculation; 0: none
    load_shares: tuple = ()       # of the requests that Facet can serve: an open loop of each
    load_seconds: float = 10

    @property
    def streams(self):
        return tuple(self.decode_tokens)


@dataclasses.dataclass(frozen=True)
class Plan:
    works: dict  # by size
    rounds: int = 5
    kinds: tuple = ("q8_0", "q4_0", "q4_k_m")
    limits_seconds: float = 1


WHOLE = Plan(works={
    "270m": Work(decode_tokens={1: 128, 2: 128, 8: 96, 32: 64},
                 peer_tokens={1: 64, 2: 48, 8: 24, 32: 16},
                 prefill_repeats=4, peer_prefill_repeats=2, serve_streams=(1, 8, 32),
                 cost_streams=(1, 32), long_prompt=8192, speculation_tokens=128,
                 load_shares=(0.1, 0.25, 0.5, 0.9)),
    "1b": Work(decode_tokens={1: 64, 2: 48, 8: 48, 32: 32},
               peer_tokens={1: 32, 2: 24, 8: 12, 32: 8},
               prefill_repeats=2, peer_prefill_repeats=1)})

QUICK = Plan(rounds=1, kinds=("q8_0", "q4_k_m"), limits_seconds=0.3, works={
    "270m": Work(decode_tokens={1: 64, 8: 32}, peer_tokens={1: 32, 8: 12},
                 prefill_repeats=2, peer_prefill_repeats=1, serve_streams=(8,),
                 serve_tokens=(128, 32), cost_streams=(1,), long_prompt=2048, long_tokens=16,
                 speculation_tokens=64, load_shares=(0.2, 0.6), load_seconds=4),
    "1b": Work(decode_tokens={1: 32, 8: 16}, peer_tokens={1: 16, 8: 6},
               prefill_repeats=1, peer_prefill_repeats=1)})
