"""Four chat templates as models have them, the same with marked answers, and a tiny tokenizer for each."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_MARKED = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% set content = message['content'] | trim + '<|eot_id|>' %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ content }}{% endgeneration %}{% else %}{{ content }}{% endif %}{% endfor %}"
)
# as Qwen 3: of earlier answers the thoughts are left out, the last one has a place for them
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% if loop.last %}{{ '<think>\n' + message['content'].split('</think>')[0] * ('</think>' in message['content']) + "
    "'</think>\n' }}{% endif %}{{ message['content'].split('</think>')[-1] }}{% else %}{{ message['content'] }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_MARKED = (
    "{{ bos_token }}{% for message in messages %}{% set text = message['content'] | trim + '<end_of_turn>' %}"
    "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}{% generation %}{{ text }}{% endgeneration %}"
    "{% else %}{{ '<start_of_turn>' + message['role'] + '\n' + text }}{% endif %}{{ '\n' }}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_MARKED = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{% generation %}{{ message['content'] + eos_token}}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
# name: the template, the same with marked answers, BOS, EOS, other special tokens, whether it takes a system message
TEMPLATES = {
    "chatml": (CHATML, CHATML_MARKED, None, "<|im_end|>", ["<|im_start|>"], True),
    "llama-3": (
        LLAMA_3,
        LLAMA_3_MARKED,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        True,
    ),
    "gemma": (GEMMA, GEMMA_MARKED, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], False),
    "mistral": (MISTRAL, MISTRAL_MARKED, "<s>", "</s>", [], False),
}
TEXT = [
    "system\nuser\nassistant\nmodel\n[INST] Where is the heavy jar? [/INST] It is in Denver. Is it? Yes, it is. ",
    "The heavy jar is in Denver. Question: Where is the jar? Answer: in Denver or in Oslo. It says: yes, yes, yes. ",
]


def byte_level(text: list[str] = TEXT, **special: str | list[str] | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges learnt from a text, as GPT-2, Llama 3 and Qwen have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    added = special.pop("added", None) or []
    tokenizer.add_special_tokens([AddedToken(str(name), normalized=False, special=True) for name in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def chat_tokenizer(name: str, *, marked: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a template in TEMPLATES."""
    template, with_marks, bos, eos, added, _ = TEMPLATES[name]
    tokenizer = byte_level(bos_token=bos, eos_token=eos, added=added)
    tokenizer.chat_template = with_marks if marked else template
    return tokenizer
