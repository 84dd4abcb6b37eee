"""A completion function for OpenAI Evals that asks the chat endpoint of OPENAI_BASE_URL.

Imported by oaieval in its own environment, as registry/completion_fns/tinyft.yaml says. Evals' own
OpenAIChatCompletionFn refuses the `registry` that every completion function of a registry is given, and oaieval can't
add up what OpenAI's client of today says about usage.
"""

import openai
from evals.api import CompletionResult
from evals.prompt.base import is_chat_prompt
from evals.record import record_sampling

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class Replies(CompletionResult):
    """The replies to one sample."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def get_completions(self) -> list[str]:
        """The texts."""
        return self.texts


class ChatCompletionFn:
    """Asks `model` with the options that the registry gives, or the eval where it has its own."""

    def __init__(self, model: str, registry: object = None, **options):
        self.model, self.options = model, options
        self.client = openai.OpenAI()  # reads OPENAI_BASE_URL and OPENAI_API_KEY

    def __call__(self, prompt, **options) -> Replies:
        """Send a sample's messages, or a text as the user's; recorded for oaieval's report."""
        messages = prompt if is_chat_prompt(prompt) else [{"role": "user", "content": prompt}]
        answer = self.client.chat.completions.create(model=self.model, messages=messages, **self.options | options)
        texts = [choice.message.content or "" for choice in answer.choices]
        record_sampling(prompt=messages, sampled=texts, model=answer.model,
                        usage={name: getattr(answer.usage, name) for name in COUNTS})
        return Replies(texts)
