"""The process in which chat templates run: started by `chat_template.py` as a script of its own, with Jinja alone.

A template is a program that came with somebody's model. Jinja's sandbox keeps it from everything but its own values,
but not from loops without end, nor from `10 ** 10 ** 10`, which no signal interrupts. A process can be ended.

Each line that it reads is JSON: first the limits and where modules are found, then {"template", "variables",
"requests": [[messages, add_generation_prompt], ...]}, without a template where it is the one before. Each is answered
with a line: {"texts"} or {"error", "kind"}.
"""

import json
import signal
import sys
from datetime import datetime


def environment():
    """Jinja as transformers sets it up for chat templates."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} marks, for transformers, what a model has said.

        Here the text counts alone. It is rendered as the body of a call, as there, so that what it sets stays inside.
        """

        tags = {"generation"}  # noqa: RUF012 - jinja2 expects it on the class

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers
    return made


def limit_memory(most: int) -> None:
    """An allocation beyond what the process has now and `most` bytes fails, where the system has such a limit."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + most, now + most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # macOS and Windows: the time alone is limited there


def limit_time(seconds: float) -> None:
    """The process ends, whatever it computes, after so many seconds of a processor; 0: not any more."""
    if hasattr(signal, "setitimer"):  # on Windows whoever asks ends it
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(jinja, known: dict, asked: dict, limits: dict) -> dict:
    """The texts of all requests; or what went wrong, and whether the template was no template."""
    limit_time(limits["seconds"])
    if "template" in asked:
        known.clear()
        known["template"] = asked["template"]
    try:
        if "compiled" not in known:
            known["compiled"] = jinja.from_string(known["template"])
        texts = []
        for messages, reply_follows in asked["requests"]:
            limit_time(limits["seconds"])
            parts, size = [], 0
            most = limits["characters"] + 8 * sum(len(text) for message in messages for text in message.values())
            for part in known["compiled"].generate(messages=messages, add_generation_prompt=reply_follows, tools=None,
                                                    documents=None, **asked["variables"]):
                parts.append(part)
                size += len(part)
                if size > most:
                    raise MemoryError
            texts.append("".join(parts))
        return {"texts": texts}
    except MemoryError:
        return {"error": "it makes more text than any conversation has", "kind": "limit"}
    except RecursionError:
        return {"error": "it is nested too deeply, or calls itself without end", "kind": "limit"}
    except Exception as error:  # a template is a program: whatever it raises
        kind = "render" if "compiled" in known else "syntax"
        return {"error": " ".join(str(error)[:1000].split()) or type(error).__name__, "kind": kind}


def main() -> None:
    """Answer line by line until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    setup = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = setup["path"]
    jinja, known = environment(), {}
    limit_memory(setup["bytes"])
    for line in sys.stdin.buffer:
        found = answer(jinja, known, json.loads(line), setup)
        limit_time(0)
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
