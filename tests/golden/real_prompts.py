"""Prompts for the real models: (name, text, whether markers such as <start_of_turn> are ids)."""

import pathlib

TEXT = (pathlib.Path(__file__).parent / "text.txt").read_text(encoding="utf-8")


def gemma_turns(*turns):
    """Turns by user and model alternately, and the start of the model's answer."""
    roles = ("user", "model")
    said = "".join(f"<start_of_turn>{roles[i % 2]}\n{turn}<end_of_turn>\n"
                   for i, turn in enumerate(turns))
    return said + "<start_of_turn>model\n"


def chatml_turns(system, *turns):
    roles = ("user", "assistant")
    said = f"<|im_start|>system\n{system}<|im_end|>\n"
    said += "".join(f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n"
                    for i, turn in enumerate(turns))
    return said + "<|im_start|>assistant\n"


GEMMA3 = [
    ("english", "The lighthouse keeper climbed the stairs and", False),
    ("facts", "The capital of France is Paris. The capital of Japan is", False),
    ("list", "Shopping list:\n- apples\n- bread\n- milk\n-", False),
    ("german", "Im Winter, wenn der See zugefroren ist,", False),
    ("french", "La recette de la soupe à l'oignon commence par", False),
    ("spanish", "Érase una vez un pescador que vivía", False),
    ("russian", "Москва — столица России, а Санкт-Петербург", False),
    ("chinese", "中国的首都是北京。它有三千多年的历史，", False),
    ("japanese", "日本で一番高い山は富士山です。", False),
    ("arabic", "كان يا ما كان في قديم الزمان", False),
    ("hindi", "भारत एक विशाल देश है जहाँ", False),
    ("korean", "오늘 아침에 일어나 보니", False),
    ("python", "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", False),
    ("cpp", "#include <vector>\n\n// Sorts the values in place.\nvoid Sort(std::vector<int>& values)",
     False),
    ("json", '{"name": "Ada Lovelace", "born": 1815, "occupation": "', False),
    ("arithmetic", "2 + 2 = 4\n3 + 3 = 6\n4 + 4 = 8\n5 + 5 =", False),
    ("emoji and spaces", "🌊🐋  The   whale 🐳 said:\n\n\n\t", False),
    ("chat", gemma_turns("Why is the sky blue?"), True),
    ("chat with history", gemma_turns("Name a color.", "Blue.", "Name another one, and a fruit."),
     True),
    ("long context", TEXT[:8500], False),
]

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

SMOLLM2 = [
    ("english", "The lighthouse keeper climbed the stairs and", False),
    ("facts", "The capital of France is", False),
    ("python", "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", False),
    ("numbers", "In 1969, 1972 and 12345678, the", False),
    ("other scripts", "Москва, 北京, القاهرة:", False),
    ("chat", chatml_turns(SMOLLM2_SYSTEM, "What is the capital of France?"), True),
    ("chat with history", chatml_turns("You are a pirate.", "Hello!", "Arr, matey!", "Who are you?"),
     True),
    ("long context", TEXT[:4000], False),
]
