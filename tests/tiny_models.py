"""Models that are real in everything but size: made on the spot, seeded, loaded by the same libraries as large ones."""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template as models ship it: with no markers of what the assistant says."""

_CORPUS = (
    "You are a helpful assistant. Answer the question with one short sentence, from the text that is given.",
    "What does the handbook say about annual leave, remote work, travel expenses and the learning budget?",
    "Employees have 30 days of leave a year. The service desk answers between 8:00 and 17:00 on working days.",
    "To restore a backup open the console, choose the volume, and confirm. The router shows a green light.",
    "The capital of France is Paris; water boils at 100 degrees; seven times six is forty-two.",
)


def make_tiny_chat_model(folder: Path, *, seed: int = 0) -> Path:
    """A Llama of 0.7 million random weights with a byte-level tokenizer and a ChatML template, in `folder`.

    Its vocabulary covers every text; head size 64 and 1024 positions suit vLLM.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=1024,
        chat_template=CHATML,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_tiny_embedding_model(folder: Path, *, dimensions: int = 64, max_tokens: int = 128, seed: int = 0) -> Path:
    """A sentence-transformers folder with a random two-layer BERT that reads `max_tokens` tokens.

    It sees no order (positions are zero), so that texts which share words lie near each other, as with a trained model.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator([*_CORPUS, " ".join(letters), "".join(letters)], vocab_size=600, show_progress=False)
    fast = BertTokenizerFast(tokenizer_object=wordpiece._tokenizer, model_max_length=max_tokens)
    torch.manual_seed(seed)
    bert = BertModel(
        BertConfig(
            vocab_size=len(fast),
            hidden_size=dimensions,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * dimensions,
            max_position_embeddings=512,
        )
    )
    with torch.no_grad():
        bert.embeddings.position_embeddings.weight.zero_()
        bert.embeddings.token_type_embeddings.weight.zero_()
        bert.embeddings.word_embeddings.weight.normal_(0, 1)
    raw = folder / "transformer"
    bert.save_pretrained(raw)
    fast.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=max_tokens)
    model = SentenceTransformer(modules=[transformer, Pooling(dimensions, "mean"), Normalize()], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
