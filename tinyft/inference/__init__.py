"""What a trained model is for: replies to prompts, and how likely texts are.

  weights.py       a model's weights prepared for it, in 32, 16 or 8 bits
  engine.py        one compiled step for new tokens of many sequences
  cache.py         which blocks of the cache are whose, and what sequences share
  sampling.py      which token comes next
  scheduler.py     requests join and leave a running batch
  generate.py, replies.py, text.py, chat.py    one prompt or many, as tokens or as text; a conversation
  prompt_files.py  prompts from a file
  scores.py        log-probabilities and perplexity
  service.py, protocol.py, answers.py, server.py    OpenAI's protocol over HTTP
"""
